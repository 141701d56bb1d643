"""Bundles on a robot: nothing is taken on trust, and every refusal is one line that says what to do."""

import copy
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import small_bundles
from onnx import TensorProto, helper
from small_bundles import CAMERA, STATE

from vivace.deploy.bundle.bundle import DIGEST, MANIFEST, Bundle
from vivace.deploy.bundle.golden import Golden
from vivace.deploy.bundle.onnx_file import external_data
from vivace.deploy.inference.ort_graph import check_version, share_threads
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.eval import cli
from vivace.policies.errors import BadBundle, BadSetting, ObservationMismatch
from vivace.policies.training_range import Range

FILE_NAME = "golden/plan.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return small_bundles.denoiser(tmp_path_factory.mktemp("whole") / "bundle")


@pytest.fixture(scope="module")
def whole_writer(tmp_path_factory) -> Path:
    return small_bundles.writer(tmp_path_factory.mktemp("writer") / "bundle")


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A bundle that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


@pytest.fixture
def writer(whole_writer, tmp_path) -> Path:
    return Path(shutil.copytree(whole_writer, tmp_path / "bundle"))


def change(folder: Path, how) -> None:
    """Change the manifest; its digest is made anew."""
    data = json.loads((folder / MANIFEST).read_text())
    how(data)
    write(folder, json.dumps(data).encode())


def write(folder: Path, manifest: bytes) -> None:
    (folder / MANIFEST).write_bytes(manifest)
    (folder / DIGEST).write_text(f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n")


def rehash(folder: Path, name: str) -> None:
    """Make the digest of one file anew."""
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    change(folder, lambda data: data["vivace"]["files"].update({name: digest}))


def ours(**sections):
    """Replace parts of our section."""
    return lambda data: data["vivace"].update(sections)


def spec(**fields):
    return lambda data: data["vivace"]["spec"].update(fields)


def plan(**fields):
    return lambda data: data["vivace"]["plans"]["plan"].update(fields)


def step(number, **fields):
    return lambda data: data["vivace"]["plans"]["plan"]["steps"][number].update(fields)


def table(number, **fields):
    return lambda data: data["vivace"]["plans"]["plan"]["steps"][number]["table"].update(fields)


def tokens(**fields):
    return lambda data: data["vivace"]["plans"]["plan"]["tokens"].update(fields)


def decoder(**fields):
    return lambda data: data["vivace"]["plans"]["plan"]["tokens"]["decoder"].update(fields)


def renamed(name):
    """A plan under the name of another."""
    return lambda data: data["vivace"].update(plans={name: data["vivace"]["plans"]["plan"]})


def golden(**fields):
    return lambda data: data["vivace"]["plans"]["plan"]["golden"].update(fields)


def graph_1(**outputs):
    return lambda data: data["vivace"]["graphs"][1]["outputs"].update(outputs)


def files(name):
    return lambda data: data["vivace"]["files"].update({name: "0" * 64})


def prompt(**fields):
    return lambda data: data["vivace"]["prompt"].update(fields)


def test_a_whole_bundle_says_what_was_checked(whole, whole_writer):
    for folder in (whole, whole_writer):
        told = {}
        bundle = Bundle.load(folder, told=told.__setitem__)
        assert list(told) == ["manifest", "contents", "files"]
        policy = OrtPolicy(bundle, task=bundle.usual_task)
        assert policy.golden_error == 0
        actions = policy.predict(small_bundles.observation(bundle), [(1, 0)])
        assert actions.shape == (1, bundle.spec.horizon - bundle.spec.first_action, 3)


def test_sha256sum_checks_the_manifest_too(whole):
    digest, name = (whole / DIGEST).read_text().split()
    assert (digest, name) == (hashlib.sha256((whole / MANIFEST).read_bytes()).hexdigest(), MANIFEST)


@pytest.mark.parametrize(("how", "message"), [
    (lambda d: d.update(version="2.0"), "version '2.0'; this vivace reads"),
    (lambda d: d.update(format="zip"), "is 'zip'"),
    (lambda d: d.pop("vivace"), "policy package of another tool"),
    (ours(layout=99), "layout 99, this vivace reads 2; update vivace"),
    (ours(layout=1), "layout 1, this vivace reads 2; it was written by an older vivace; export"),
    (ours(layout=True), "layout True"),
    (lambda d: d["vivace"].pop("plans"), "section 'vivace' lacks 'plans'"),
    (ours(plans={}), "has no plan; needed: one or more"),
    (lambda d: d["vivace"]["plans"].update({"a/b": d["vivace"]["plans"].pop("plan")}), "a plan called 'a/b'"),
    (step(1, at=1), "step 1 of plan 'plan' looking up row 1 of 1"),
    (step(1, at=-1), "at is -1; needed: 0..10000"),
    (step(1, weights={"action.0.mlp": [1.0, 1.0]}), "can take 1, without weights, and 1 were kept"),
    (step(0, weights={"action.9.mlp": [1.0]}), "of what was kept of 'action.9.mlp'; .* can take 0"),
    (ours(extra=1), "section 'vivace' has no option 'extra'"),
    (plan(steps=[]), "plan 'plan' without steps and .*; needed: steps, tokens to write, or one graph"),
    (lambda d: d["vivace"]["actions"].update(span=[1] * 2), "of shape .2,.; needed: .3,"),
    (spec(n_obs_steps=2**64), "n_obs_steps is 18446744073709551616; needed"),
    (spec(n_obs_steps=1), "contradicts itself: it.model.n_obs_steps is 2"),
    (spec(action_kinds=["absolute"] * 2), "has 2 action_kinds; needed: one for"),
    (spec(action_kinds=["absolute"] * 2 + ["x"]), "needed is one of 'absolute'"),
    (lambda d: d["vivace"]["actions"].update(span=[2**64] * 3), "span.0 is 18446744073709551616; whole"),
    (lambda d: d["vivace"]["actions"].update(span=[0, 1, 1]), "span of 'the actions' of 0; needed: above 0"),
    (lambda d: d["vivace"]["observations"].pop(STATE), "normalisations of .*; needed: one for each"),
    (step(1, graph=7), "3 graphs and a call of .7. in plan"),
    (step(1, graph=0), "step 1 of plan 'plan' writing"),
    (table(1, keep=["m3"]), r"keeping \('m3',\); needed: some of"),
    (table(2, memory=[]), "step 2 of .* with 0 weights of its memory"),
    (table(0, alpha=0, sigma=0), "needed: 0 or more, not both 0"),
    (graph_1(out=[1, 6, 4]), r"out of step 0 of .* of shape \(1, 6, 4\)"),
    (spec(action_range={"low": [0], "high": [1], "step": [1]}), "action_range lacks .bounds_from."),
    (plan(golden=None), "no golden chunk of plan 'plan'; needed: golden/plan.safetensors"),
    (renamed("fast"), "the golden chunk 'golden/plan.* of plan 'fast'; needed: golden/fast"),
    (files("golden/lost.safetensors"), "the golden chunk ..golden/lost.* of no plan"),
    (ours(files={}), "has no digest of '.*', which is used"),
    (lambda d: d["vivace"]["files"].pop("graphs/weights.bin"), "has no digest of 'graphs/weights.bin'"),
    (files("../x"), "the file name '../x' may be outside the folder"),
    (files("/etc/passwd"), "'/etc/passwd' may be outside"),
    (files("a\0b"), "may be outside the folder"),
    (files("none"), "has no none; copy the whole folder"),
    (ours(ranges={STATE: {"low": [2] * 5, "high": [1] * 5}}), "an empty range of 'observation.state'"),
    (golden(tolerance=0.5), "tolerance is 0.5; needed: 0..0.1"),
])  # fmt: skip
def test_a_manifest_that_does_not_fit_is_named(folder, how, message):
    change(folder, how)
    with pytest.raises(BadBundle, match=message) as caught:
        OrtPolicy(folder)
    assert len(str(caught.value).splitlines()) == 1


TOP = "observation.images.top"


def relative(state=STATE, dimensions=(True, True, False)):
    return ours(relative={"state": state, "dimensions": list(dimensions)})


@pytest.mark.parametrize(("how", "message"), [
    (ours(renamed={TOP: STATE}), "'observation.images.top' renamed to 'observation.state'; needed: another"),
    (ours(renamed={TOP: TOP}), "renamed to 'observation.images.top'; needed: another name of an observation"),
    (ours(renamed={"observation.images.x": CAMERA}), "'observation.images.x' renamed to"),
    (ours(renamed={STATE: "observation.x", TOP: CAMERA}), "'observation.state' of shape .* read by"),
    (lambda d: d["vivace"].pop("renamed"), "'observation.images.front' of shape .* read by"),
    (relative(dimensions=[True] * 2), "2 dimensions of relative actions; needed: 3"),
    (relative(dimensions=[1] * 3), r"dimensions\[0\] is 1; needed is true or false"),
    (relative(state=TOP), "actions relative to 'observation.images.top' of shape .*; needed: 3 numbers"),
    (relative(state="observation.x"), r"actions relative to 'observation.x' of shape \(\)"),
    (relative(dimensions=[True] * 3), "its golden chunk is off by"),
    (lambda d: d["vivace"].pop("relative"), "its golden chunk is off by"),
])  # fmt: skip
def test_names_and_relative_actions_are_checked_too(tmp_path, how, message):
    folder = small_bundles.renaming(tmp_path / "bundle")
    change(folder, how)
    with pytest.raises(BadBundle, match=message):
        OrtPolicy(folder)


@pytest.mark.parametrize(("how", "message"), [
    (prompt(template="{instruction}{0}", tokenizer=FILE_NAME), "no other braces"),
    (prompt(length=2), "tokens for 'open the drawer'; needed: 1..2"),
    (ours(prompt=None), "instructions and no prompt"),
    (tokens(n=17), "18 of 17 tokens; needed: at most 18 of 18"),
    (tokens(end=10), "ids up to 10 and 16 bins"),
    (decoder(kind="sjd"), "needed is one of 'greedy'"),
    (decoder(table=[1]), "a table of 1 tokens; needed: 18 ids"),
    (plan(finish=0), "tokens to write and a graph that finishes; needed: one of both"),
    (lambda d: d["vivace"]["prompts"].update({"open the drawer": [1, 2**31 - 1]}), "failed .*indices"),
    (lambda d: d["vivace"]["prompts"].update({"open the drawer": [1, 9, 9]}), "its golden chunk is off by"),
])  # fmt: skip
def test_a_manifest_of_a_policy_that_writes_is_checked_too(writer, how, message):
    change(writer, how)
    with pytest.raises(BadBundle, match=message):
        OrtPolicy(writer)


@pytest.mark.parametrize(("data", "message"), [
    (b"{", "is not JSON"),
    (b"\xff\xfe", "is not JSON"),
    (b"[" * 100_000, "is nested too deeply"),
    (b"[]", r"is \[\]; needed is an object"),
    (b'{"a": 1, "a": 2}', "key 'a' is there twice"),
    (b'{"x": ' + b"9" * 5000 + b"}", "is not JSON"),
    (b" " * (2**24 + 1), "has 16777217 bytes; at most"),
])  # fmt: skip
def test_what_is_no_manifest(folder, data, message):
    write(folder, data)
    with pytest.raises(BadBundle, match=message):
        Bundle.load(folder)


def test_depth_and_size_inside_are_bounded(folder):
    deep = []
    for _ in range(40):
        deep = [deep]
    change(folder, plan(receipt={"a": deep}))
    with pytest.raises(BadBundle, match="is nested too deeply"):
        Bundle.load(folder)


def test_what_was_changed_behind_the_digests_is_found(folder, tmp_path):
    with pytest.raises(BadBundle, match=r"no manifest\.json in .*; make a bundle"):
        Bundle.load(tmp_path / "nothing")
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes() + b" ")
    with pytest.raises(BadBundle, match=r"manifest\.json was changed: its sha256 is"):
        Bundle.load(folder)
    (folder / DIGEST).unlink()
    with pytest.raises(BadBundle, match=r"has no manifest\.sha256; copy the whole folder"):
        Bundle.load(folder)


def test_every_file_that_is_used_is_hashed(folder):
    for name in ("graphs/weights.bin", "graphs/step-000.onnx", FILE_NAME):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before[:-1])
        with pytest.raises(BadBundle, match=rf"{name} was changed or is truncated"):
            Bundle.load(folder)
        (folder / name).write_bytes(before)
    Bundle.load(folder)


@pytest.mark.parametrize("where", ["graphs/weights.bin", "graphs/encode.onnx", FILE_NAME])
def test_links_that_leave_the_folder_are_refused(folder, tmp_path, where):
    shutil.move(folder / where, tmp_path / "elsewhere")
    (folder / where).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadBundle, match=rf"{where} is a link to a place outside the folder"):
        Bundle.load(folder)


def test_a_pipe_is_no_file(folder):
    (folder / "graphs" / "weights.bin").unlink()
    os.mkfifo(folder / "graphs" / "weights.bin")
    with pytest.raises(BadBundle, match=r"has no graphs/weights\.bin"):
        Bundle.load(folder)


def relocated(folder: Path, location: str, how) -> None:
    """Let the tensors of a graph be elsewhere."""
    file = folder / "graphs" / "encode.onnx"
    model = onnx.load(file, load_external_data=False)
    tensors = [tensor for tensor in model.graph.initializer if tensor.external_data]
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    how(model, tensors)
    file.write_bytes(model.SerializeToString())
    rehash(folder, "graphs/encode.onnx")


def as_initializers(model, tensors):
    pass


def in_a_branch(model, tensors):
    """Inside a constant of a graph inside an attribute."""
    constant = helper.make_node("Constant", [], ["deep"], value=tensors[0])
    branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("deep", 1, None)])
    model.graph.node.append(
        helper.make_node("If", ["on"], ["unused"], then_branch=branch, else_branch=branch)
    )
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "weights.bin"
    for entry in model.graph.node[-1].attribute[0].g.node[0].attribute[0].t.external_data:
        if entry.key == "location":
            entry.value = "/etc/passwd"


def in_a_function(model, tensors):
    node = helper.make_node("Constant", [], ["y"], value=tensors[0])
    model.functions.append(helper.make_function("own", "F", [], ["y"], [node], [helper.make_opsetid("", 20)]))
    as_sparse(model, tensors)


def as_sparse(model, tensors):
    sparse = onnx.SparseTensorProto(values=tensors[0], dims=[4])
    model.graph.sparse_initializer.append(sparse)


@pytest.mark.parametrize("how", [as_initializers, in_a_branch, in_a_function, as_sparse])
@pytest.mark.parametrize(
    "location", ["../../secret.bin", "/etc/passwd", "a/../../b", "", ".", "..", "*/_ORT_MEM_ADDR_/*"]
)
def test_numbers_outside_the_folder_are_refused_wherever_a_graph_names_them(folder, location, how):
    relocated(folder, location, how)
    with pytest.raises(BadBundle, match="may be outside the folder; names of a bundle are letters"):
        Bundle.load(folder)


def test_numbers_in_a_file_without_digest_are_refused(folder):
    (folder / "graphs" / "others.bin").write_bytes(bytes(10_000))
    relocated(folder, "others.bin", as_initializers)
    with pytest.raises(BadBundle, match=r"has no digest of 'graphs/others\.bin', which is used"):
        Bundle.load(folder)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("offset", "99999999", "has tensors at .* of graphs/weights.bin, which is shorter"),
    ("length", "99999999", "has tensors at .* of graphs/weights.bin, which is shorter"),
    ("offset", "-1", "has a tensor at offset '-1'"),
    ("offset", "0x10", "has a tensor at offset '0x10'"),
    ("length", "9" * 100, "whole numbers are needed"),
])  # fmt: skip
def test_places_of_numbers_are_checked(folder, key, value, message):
    def how(model, tensors):
        next(entry for entry in tensors[0].external_data if entry.key == key).value = value

    relocated(folder, "weights.bin", how)
    with pytest.raises(BadBundle, match=message):
        Bundle.load(folder)


def test_a_place_that_is_said_twice_is_refused(folder):
    relocated(
        folder, "weights.bin", lambda _, tensors: tensors[0].external_data.add(key="location", value="../x")
    )
    with pytest.raises(BadBundle, match="a tensor says its 'location' twice"):
        Bundle.load(folder)


def test_graphs_are_read_as_protobuf_reads_them(whole):
    data = (whole / "graphs" / "encode.onnx").read_bytes()
    found = external_data(data, "graphs/encode.onnx")
    assert {part.file for part in found} == {"graphs/weights.bin"}
    assert sum(part.length for part in found) == 4 * (10 * 4 + 96 * 4)
    for damaged in (data[:-3], data[:40] + b"\xff" * 11 + data[40:], b"\x0b" + data):
        with pytest.raises(BadBundle, match=r"is damaged, or is no ONNX|may be outside"):
            external_data(damaged, "graphs/encode.onnx")
    field = (
        TensorProto.EXTERNAL_DATA_FIELD_NUMBER if hasattr(TensorProto, "EXTERNAL_DATA_FIELD_NUMBER") else 13
    )
    assert field == 13
    hidden = onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.NodeProto(op_type="EPContext")]))
    with pytest.raises(BadBundle, match="holds a graph that a provider compiled"):
        external_data(hidden.SerializeToString(), "graphs/x.onnx")


def test_graphs_must_have_the_shapes_they_are_said_to_have(folder):
    def wider(data):
        data["vivace"]["graphs"][0]["outputs"]["context.0"] = [1, 5]
        data["vivace"]["graphs"][1]["inputs"]["context.0"] = [1, 5]

    change(folder, wider)
    with pytest.raises(BadBundle, match="has outputs .* the manifest says"):
        OrtPolicy(folder)


def scaled(folder: Path, gain: float) -> None:
    """Change the weights a little, with every digest made anew."""
    file = folder / "graphs" / "weights.bin"
    (np.fromfile(file, np.float32) * np.float32(gain)).tofile(file)
    rehash(folder, "graphs/weights.bin")


def test_a_bundle_that_does_something_else_is_refused_with_the_number(folder):
    scaled(folder, 1 + 1e-6)
    assert 0 < OrtPolicy(folder).golden_error < 1e-4
    scaled(folder, 1.05)
    with pytest.raises(
        BadBundle, match=r"its golden chunk is off by 0\.\d+, at most 0\.001 is allowed; export"
    ):
        OrtPolicy(folder)
    scaled(folder, float("nan"))
    with pytest.raises((BadBundle, Exception), match="NaN"):
        OrtPolicy(folder)


def test_an_older_runtime_is_refused_by_name():
    for version in ("1.20.0", "1.32.0", "2.0.0", "1.23.0.dev1"):
        check_version(version)
    with pytest.raises(BadSetting, match=r"onnxruntime 1\.19\.2 is installed; 1\.20 or newer is needed"):
        check_version("1.19.2")


def test_a_runtime_that_knows_less_runs_bundles_too(whole, monkeypatch):
    """C1: before 1.23 Python could neither share threads among graphs nor say so."""

    class Options(ort.SessionOptions):
        def __setattr__(self, name, value):
            if name == "use_per_session_threads":
                raise AttributeError(name)
            super().__setattr__(name, value)

        def __getattribute__(self, name):
            if name == "use_per_session_threads":
                raise AttributeError(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(ort, "SessionOptions", Options)
    monkeypatch.delattr(ort, "set_global_thread_pool_sizes")
    share_threads(1)
    assert OrtPolicy(whole, threads=1, shares_threads=True).golden_error == 0


def test_replaying_leaves_nothing_behind(whole):
    bundle = Bundle.load(whole)
    seen = small_bundles.observation(bundle)
    policy, plain = OrtPolicy(bundle), OrtPolicy(replace(bundle, goldens={}))
    assert np.array_equal(policy.predict(seen, [(1, 0)]), plain.predict(seen, [(1, 0)]))
    assert (policy.cut_short, policy.outside, policy.implausible, policy.chunking) == (0, 0, 0, None)


def test_the_golden_file_is_read_by_what_is_known_before(whole, whole_writer):
    bundle = Bundle.load(whole)
    golden = bundle.recorded
    data = golden.to_bytes()
    again = Golden.from_bytes(data, "g", bundle.spec)
    assert all(np.array_equal(again.observations[key], golden.observations[key]) for key in (STATE, CAMERA))
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])

    def rebuilt(how, body=data[8 + size :]):
        changed = copy.deepcopy(header)
        how(changed)
        text = json.dumps(changed).encode()
        return len(text).to_bytes(8, "little") + text + body

    for damaged, message in (
        (b"", "is truncated"),
        (data[:7], "is truncated"),
        ((2**62).to_bytes(8, "little") + data[8:], "is truncated"),
        (data[:-1], "bytes of numbers; needed are"),
        (rebuilt(lambda h: h.update(extra=h["action"])), "needed are"),
        (rebuilt(lambda h: h["action"].update(dtype="F64")), "has action as F64"),
        (rebuilt(lambda h: h["action"].update(shape=[1, 3])), r"has action as F32 \(1, 3\)"),
        (rebuilt(lambda h: h["action"].update(data_offsets=[0, 60])), "at .0, 60.; needed is"),
        (rebuilt(lambda h: h["action"].update(data_offsets=[0])), "has 1 entries; needed are 2"),
        (rebuilt(lambda h: None, data[8 + size : -4] + b"\xff\xff\xff\x7f"), "are not finite"),
    ):
        with pytest.raises(BadSetting, match=message):
            Golden.from_bytes(damaged, "g", bundle.spec)


def test_a_sensor_far_from_what_training_saw_is_refused_and_counted(whole):
    policy = OrtPolicy(whole)  # it saw -2..2
    seen = small_bundles.observation(policy.bundle)
    policy.predict(seen, [(1, 0)])
    assert (policy.outside, policy.implausible) == (0, 0)
    seen[STATE][0, 1, 3] = 3.0  # a sensor that drifts
    policy.predict(seen, [(1, 0)])
    assert (policy.outside, policy.implausible) == (1, 0)
    seen[STATE][0, 1, 3] = 57.0  # degrees for radians
    message = (
        r"number 3 of observation 'observation\.state' is 57, training saw -2\.\.2: 13\.8 spans outside, at"
    )
    with pytest.raises(ObservationMismatch, match=message):
        policy.predict(seen, [(1, 0)])
    assert (policy.outside, policy.implausible) == (2, 1)
    assert OrtPolicy(whole, plausible_spans=14).predict(seen, [(1, 0)]).shape == (1, 5, 3)
    OrtPolicy(whole, plausible_spans=np.inf).predict(seen, [(1, 0)])
    for wrong in (-1, np.nan):
        with pytest.raises(BadSetting, match="plausible_spans=.*; 0 or more is needed"):
            OrtPolicy(whole, plausible_spans=wrong)


def test_a_number_that_never_changed_may_be_rounded_otherwise(whole):
    known = Range(np.array([0, 5.03], np.float32), np.array([0, 5.03], np.float32))
    least = np.full(2, 1e-8, np.float32)  # what lerobot divides by where nothing changed
    assert known.spans_outside(np.array([0, np.nextafter(np.float32(5.03), 6)]), least).max() < 1
    assert known.spans_outside(np.array([1e-9, 5.03], np.float32), least).max() < 1
    assert known.spans_outside(np.array([0.01, 5.03], np.float32), least).max() > 1e5


def test_check_lists_what_was_checked(whole, capsys):
    assert cli.main(["check", str(whole), "--threads=1"]) == 0
    out = capsys.readouterr()
    for what in ("manifest", "contents", "files", "graphs", "golden", "signature  not checked"):
        assert what in out.err
    assert json.loads(out.out.splitlines()[-1])["golden_error"] == 0


def test_check_names_what_is_wrong(folder, capsys, tmp_path):
    (folder / FILE_NAME).write_bytes(b"")
    assert cli.main(["check", f"--bundle={folder}"]) == 2
    assert "was changed or is truncated" in capsys.readouterr().err
    assert cli.main(["check"]) == 2
    assert "vivace check needs a folder" in capsys.readouterr().err
    assert cli.main(["check", str(tmp_path / "none")]) == 2
    with pytest.raises(SystemExit):
        cli.main(["check", "--help"])
    assert "Example: vivace check outputs/bundles/reach" in capsys.readouterr().out
