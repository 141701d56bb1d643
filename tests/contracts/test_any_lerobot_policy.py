"""Every policy type that lerobot has, and ours: what works, and what is refused in one line.

A command as a user types it, on a miniature that lerobot saved, in a world of its own features; what comes of
it is in the tables of policies/README.md. Faults, by their ids: G5 to G7, G10 to G12, B2, B3, B5.
"""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from any_world import world_of
from checkpoints import EVERY, OURS, checkpoint
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_policy_config
from lerobot_itself import LeRobot, draw_alike, moments, ours
from lerobot_policies import TASK, TYPES, features, saved
from support_table import YES, shows

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.checks import check_contents
from vivace.deploy.export.lerobot_path import path_error
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.eval.cli import main
from vivace.policies.errors import BadBundle, UnsupportedPolicy
from vivace.policies.load import load_policy
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.session import Session
from vivace.policies.spec import DELAY, PREVIOUS

README = Path(__file__).parents[2] / "policies" / "README.md"
FEW = ["--accel.episodes=1", "--accel.samples=1", "--accel.judged_episodes=1", "--accel.judged_samples=2"]
SHORT = ["--eval.n_episodes=2", "--eval.timed_chunks=1", "--eval.curve=[]", "--eval.video=false",
         "--eval.lineup=false", "--bench.repeats=1", "--bench.threads=1", "--env.max_steps=5"]  # fmt: skip
VERBS = {
    "eval": ["eval", *SHORT, "--latency.type=none"],
    "bench": ["bench", "--bench.compile=false", "--bench.repeats=1", "--bench.threads=1"],
    "calibrate": ["calibrate"],
    "explain": ["explain"],
    "export": ["export", "--export.samples=1"],
    "rtc": ["eval", *SHORT, "--latency.type=constant", "--latency.seconds=0.1", "--loop.mode=rtc"],
}
"""Column -> command."""
MORE = {
    **dict.fromkeys(
        ((kind, "bench") for kind in ("dp_transformer", "diffusion", "multi_task_dit")),
        ["--bench.only=[bac,uniform]"],
    ),
    ("groot", "bench"): ["--bench.only=[hoist]"],
    **dict.fromkeys(((kind, "bench") for kind in ("pi0_fast", "token_vla")), ["--bench.only=[jacobi]"]),
    **dict.fromkeys(
        ((kind, "bench") for kind in ("cogact", "pi0", "pi05", "smolvla")), ["--bench.only=[cache]"]
    ),
    ("pi0_fast", "calibrate"): ["--accel.techniques=[jacobi]"],
}

WORKS = "works"
NO_RTC = "real-time chunking works on denoising steps, but policy '{}' has none of its own to correct; use"
DRAWS = "policy '{}' is opaque and draws noise, which a graph would draw once for ever; of opaque policies"
OWN_WAY = (
    "policy '{}' has its actions widened or normalised by its processors in a way of its own, so no chunk"
)
SELECTS = "policy '{}' is opaque and asked by its own select_action, which is no graph; of opaque policies"
TOKENS = "policy '{}' writes tokens of its own kind; token_vla can be exported"
SHORTLY = {
    WORKS: YES,
    NO_RTC: "no: has none",
    OWN_WAY: "no: own processors",
    DRAWS: "no: draws noise",
    SELECTS: "no: own queue",
    TOKENS: "no: own tokens",
}
"""Line -> what the tables of README say of it."""
OWN_LOOP = {"export": SELECTS, "rtc": NO_RTC}
DENOISES = {"export": DRAWS}
OPAQUE = ("vqbet", "tdmpc", "gaussian_actor", "eo1", "vla_jepa", "evo1")
"""Types that do not come apart: calibrate saves a plan of nothing."""
REFUSED = {
    "act": {"rtc": NO_RTC},
    **dict.fromkeys(("vqbet", "tdmpc", "gaussian_actor"), OWN_LOOP),
    "groot": {"rtc": OWN_WAY},
    **dict.fromkeys(("eo1", "vla_jepa"), DENOISES | {"rtc": NO_RTC}),
    "evo1": DENOISES | {"rtc": OWN_WAY},
    "pi0_fast": {"export": TOKENS, "rtc": NO_RTC},
    "token_vla": {"rtc": NO_RTC},
}
"""Type -> column -> the line that refuses it; whatever is not named works."""
NOT_SMALL = ("fastwam", "lingbot_va", "molmoact2", "wall_x")
"""Types that are not built small without a network: refused."""
AS_THEY_ARE = ("xvla",)
"""Types that do not normalise actions unless they are asked to."""
EXPORTED_ELSEWHERE = ("diffusion", "groot", "multi_task_dit", "pi0", "pi05", "smolvla", "xvla", *OURS)
"""Types whose export takes long, and is tested in tests/deploy/export."""


def outcome(kind: str, column: str) -> str:
    """What came of a command: "works", or the one line that refuses it."""
    policy = checkpoint(kind)
    ask = [*VERBS[column], f"--policy.path={policy}", *world_of(policy, kind), *FEW]
    ask += MORE.get((kind, column), [])
    if column != "explain":
        ask.append(f"--output_dir={policy.parent / f'{kind}-{column}'}")
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        code = main(ask)
    lines = [line for line in said.getvalue().splitlines() if line.startswith("vivace ")]
    assert (code, len(lines)) in ((0, 0), (2, 1)), said.getvalue()
    return lines[0].partition(": ")[2] if lines else WORKS


def wanted(kind: str, column: str) -> str:
    """The line that is to come of a command, as far as it is pinned."""
    return REFUSED.get(kind, {}).get(column, WORKS)


def says(kind: str, column: str) -> str:
    """What the tables of README say of it."""
    if column == "calibrate" and kind in OPAQUE:
        return "nothing to"
    return SHORTLY[wanted(kind, column)]


CELLS = [
    pytest.param(
        kind,
        column,
        marks=[
            shows(column, kind, says(kind, column)),
            *([pytest.mark.long] if kind in OURS or (kind, column) == ("xvla", "bench") else []),
        ],
    )
    for kind in EVERY
    for column in VERBS
    if column != "export" or kind not in ("act", *EXPORTED_ELSEWHERE)
]


@pytest.mark.parametrize(("kind", "column"), CELLS)
def test_a_policy_works_or_is_refused_in_one_line(kind, column):
    """G6, G10, G11, G12, B5: nothing ends in a stack, and what cannot be says why."""
    assert outcome(kind, column).startswith(wanted(kind, column).format(kind))


@pytest.mark.parametrize("kind", [it for it in TYPES if wanted(it, "rtc") == WORKS])
def test_what_a_chunk_continues_is_normalised_as_the_preprocessor_does_it(kind):
    """G2, G6: the chunk before is no longer in the robot's units, of every type that can be continued."""
    session = Session(load_policy(saved(kind)), task=TASK, chunking=RealTimeChunking())
    seen, spec = moments(session.spec), session.spec
    before = np.random.default_rng(3).uniform(1, 6, (1, 3, spec.action_dim)).astype(np.float32)
    stacked = {key: np.stack([moment[key] for moment in seen], axis=1) for key in seen[0]}
    follow = session.inputs(stacked | {PREVIOUS: before, DELAY: np.array([1])}).follow
    theirs = LeRobot(saved(kind)).ready(seen[-1], TASK, action=torch.from_numpy(before))["action"]
    found = follow.actions[:, spec.first_action : spec.first_action + 3]
    torch.testing.assert_close(found, theirs, rtol=0, atol=0)
    assert (kind in AS_THEY_ARE) == torch.equal(found, torch.from_numpy(before))


@pytest.mark.long
@pytest.mark.shows("export", of="act")
def test_a_policy_of_one_pass_without_noise_is_exported_as_one_graph():
    """B5: ACT with two cameras and a state, run by ONNX Runtime as by torch; what it cannot, it says."""
    assert outcome("act", "export") == WORKS
    loaded = load_policy(saved("act"))
    bundle = Bundle.load(saved("act").parent / "act-export")
    assert [graph.origin.part for graph in bundle.graphs] == ["whole"]
    assert bundle.receipt["chunk_error"] <= 1e-5
    policy, session = OrtPolicy(bundle), Session(loaded)
    seen = {key: value[:, None] for key, value in moments(loaded.staged.spec, rows=2)[0].items()}
    found, wanted = (it.predict(seen, [(1, 0), (2, 0)]) for it in (policy, session))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 0.1
    with pytest.raises(UnsupportedPolicy, match="'act' has none of its own to correct; use mode async"):
        OrtPolicy(bundle, chunking=RealTimeChunking())
    (graph,) = bundle.graphs
    cut = replace(graph, outputs={"actions": (1, 7, 4)})
    with pytest.raises(BadBundle, match="or one graph of the whole with"):
        check_contents(replace(bundle, graphs=(cut,)))
    with pytest.raises(BadBundle, match="or one graph of the whole with"):
        check_contents(replace(bundle, graphs=(replace(graph, origin=replace(graph.origin, part="encode")),)))


def difference(kind: str) -> float:
    """Largest difference, in the robot's units, of what is executed from what lerobot's own loop executes."""
    with pytest.MonkeyPatch.context() as patch:
        draw_alike(patch)
        loaded = load_policy(checkpoint(kind))
        spec = loaded.staged.spec
        seen = moments(spec)
        found = ours(Session(loaded, task=TASK), seen)[:, : spec.n_action_steps]
        wanted = LeRobot(checkpoint(kind)).executed(seen, spec.n_action_steps)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max())


@pytest.mark.shows("plain", says="0")
@pytest.mark.parametrize("kind", EVERY)
def test_a_policy_executes_what_it_executes_in_lerobot(kind):
    """B2, B3, G7: histories, own queues and policies without chunks too."""
    assert difference(kind) == 0


@pytest.mark.long
@pytest.mark.parametrize("kind", TYPES)
def test_doctor_holds_every_policy_against_lerobots_own_path(kind):
    """Each draws as in lerobot's own loop there, an opaque one too."""
    assert path_error(load_policy(saved(kind)), TASK) <= 1e-5


@pytest.mark.parametrize("kind", TYPES)
def test_a_noise_key_names_a_chunk(kind):
    """G5: whatever was asked before, and whatever else is in the batch; and keys matter where noise does."""
    session = Session(load_policy(saved(kind)), task=TASK)
    one = {
        key: np.stack([m[key] for m in moments(session.spec)], axis=1)
        for key in session.spec.observation_shapes
    }
    two = {key: np.concatenate([value, value]) for key, value in one.items()}
    first, pair = session.predict(one, [(1, 0)]), session.predict(two, [(2, 0), (1, 0)])
    np.testing.assert_allclose(pair[1], first[0], rtol=1e-5, atol=1e-5)
    assert np.array_equal(session.predict(one, [(1, 0)]), first)
    is_static = kind in ("act", "pi0_fast")
    is_static |= kind == "tdmpc"
    assert (np.abs(pair[0] - pair[1]).max() < 1e-4) == is_static


@pytest.mark.parametrize("kind", NOT_SMALL)
def test_a_type_that_is_not_proven_is_refused(kind, tmp_path, capsys):
    """G6: in one line, before its weights or what it names on the Hub are looked for."""
    sizes = {"action_dim": 4, "proprio_dim": 5, "image_size": (48, 128)} if kind == "fastwam" else {}
    make_policy_config(kind, **features(), **sizes).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert main(["explain", f"--policy.path={tmp_path}"]) == 2
    (line,) = [it for it in capsys.readouterr().err.splitlines() if it.startswith("vivace ")]
    why = "keeps something from chunk to chunk" if kind == "lingbot_va" else "is not proven equal to lerobot"
    assert f"policy '{kind}' {why}" in line


def test_every_type_that_lerobot_has_is_in_the_table_or_named_beside_it():
    known = {
        kind
        for kind, config in PreTrainedConfig.get_known_choices().items()
        if config.__module__.startswith("lerobot.policies.")
    }
    assert set(TYPES) | set(NOT_SMALL) == known
    assert all(f"`{kind}`" in README.read_text() for kind in NOT_SMALL)
    assert not set(TYPES) & set(NOT_SMALL)
