"""`vivace serve`: lerobot's policy server in a process of its own, asked by a real gRPC client."""

import pickle
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot_itself import check_own
from processes import until

from vivace.deploy.lerobot.server import allow
from vivace.eval.cli import main
from vivace.eval.training.fit import save
from vivace.eval.training.recipe import statistics
from vivace.eval.verbs import serve as verb
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.tiny.policies import tiny_dp_transformer

JOINTS = [f"joint_{i}.pos" for i in range(5)]


def test_types_are_added_once():
    supported = ["act", "vivace"]
    allow(supported, ("vivace", "dp_transformer"))
    assert supported == ["act", "vivace", "dp_transformer"]


@pytest.mark.parametrize(("host", "line"), [
    ([], "serving at 127.0.0.1:8080; what comes over the wire is unpickled: this computer alone"),
    (["--host=0.0.0.0"], "serving at 0.0.0.0:8080; what comes over the wire is unpickled: whoever"),
])  # fmt: skip
def test_it_says_who_can_reach_it(host, line, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(verb, "serve", lambda **settings: asked.update(settings))
    assert main(["serve", *host]) == 0
    assert line in " ".join(capsys.readouterr().err.split())
    assert asked["inference_latency"] == 0


def test_a_setting_out_of_range_is_told_in_a_line(monkeypatch, tmp_path, capsys):
    pytest.importorskip("grpc", reason="lerobot's server needs it: pip install 'lerobot[async]'")
    monkeypatch.chdir(tmp_path)  # lerobot makes a folder of logs where it is imported
    assert main(["serve", "--port=70000"]) == 2
    assert "Port must be between 1 and 65535, got 70000" in capsys.readouterr().err
    check_own()


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    features = {"observation.state": PolicyFeature(FeatureType.STATE, (5,))}
    output = {"action": PolicyFeature(FeatureType.ACTION, (5,))}
    policy = tiny_dp_transformer(input_features=features, output_features=output)
    numbers = np.random.default_rng(0).uniform(-9, 9, (50, 5)).astype(np.float32)
    stats = dict.fromkeys(("observation.state", "action"), statistics(numbers))
    folder = tmp_path_factory.mktemp("arm")
    save(policy, *make_dp_transformer_pre_post_processors(policy.config, stats), folder / "base")
    assert main(["accelerate", str(folder / "base"), str(folder / "out")]) == 0
    return folder / "out"


@contextmanager
def served(folder):
    """A server on a free port; what it says goes into a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = folder / "said.txt"
    command = [sys.executable, "-m", "vivace.eval.cli", "serve", f"--port={port}", "--obs_queue_timeout=60"]
    with said.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
    try:
        until(lambda: "PolicyServer started on" in said.read_text() or process.poll() is not None, 600)
        assert process.poll() is None, said.read_text()[-2000:]
        yield port, said
    finally:
        process.terminate()
        process.wait()


@pytest.mark.long
def test_a_real_client_gets_chunks_of_an_accelerated_policy(arm, tmp_path):
    grpc = pytest.importorskip("grpc", reason="lerobot's server needs it: pip install 'lerobot[async]'")
    from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
    from lerobot.transport import services_pb2, services_pb2_grpc
    from lerobot.transport.utils import send_bytes_in_chunks
    from lerobot.utils.feature_utils import hw_to_dataset_features

    features = hw_to_dataset_features(dict.fromkeys(JOINTS, float), "observation", use_video=False)
    policy = RemotePolicyConfig("vivace", str(arm), features, actions_per_chunk=3)
    with served(tmp_path) as (port, said), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = services_pb2_grpc.AsyncInferenceStub(channel)
        stub.Ready(services_pb2.Empty(), timeout=600)
        stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(policy)), timeout=600)
        seen = TimedObservation(timestamp=time.time(), timestep=0, must_go=True,
                                observation=dict.fromkeys(JOINTS, 0.5))  # fmt: skip
        data = send_bytes_in_chunks(pickle.dumps(seen), services_pb2.Observation, silent=True)
        stub.SendObservations(data, timeout=600)
        actions = pickle.loads(stub.GetActions(services_pb2.Empty(), timeout=600).data)
        told = said.read_text()
    assert [action.get_timestep() for action in actions] == [0, 1, 2]
    found = np.stack([action.get_action().numpy() for action in actions])
    assert found.shape == (3, 5)
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0
    assert "'inference_latency': 0.0" in told
    assert "this computer alone is listened to" in " ".join(told.split())
