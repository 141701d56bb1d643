"""Plans: order of seams, JSON round trip, refusals; applying and calibrating on a small transformer."""

import json
import re
from dataclasses import is_dataclass, make_dataclass, replace

import pytest
import torch

from vivace.accel.apply import Calibrator, accelerate, calibrate
from vivace.accel.explain import _grid_lines, explain, grid, measured
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.registry import register, techniques
from vivace.accel.technique import CalibrationData, Seam, Technique
from vivace.accel.techniques.block_cache import BlockCache
from vivace.accel.techniques.forecast import Forecast
from vivace.accel.techniques.hoist import Hoist
from vivace.accel.techniques.mlp_prune import MlpPrune
from vivace.accel.techniques.patch_select import PatchSelect
from vivace.accel.techniques.step_schedule import StepSchedule
from vivace.deploy.loop.settings import LoopSettings
from vivace.policies.errors import (
    BadSetting,
    CalibrationError,
    NonFiniteActions,
    PlanMismatch,
    UnknownBlock,
)
from vivace.policies.execution import as_trained, sample
from vivace.policies.families.dp_transformer.staged import StagedDPTransformer
from vivace.policies.fingerprint import fingerprint
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.spec import ChunkExecution, Mode
from vivace.policies.tiny.policies import tiny_dp_transformer

KEYS = ((1, 0), (2, 0))


@pytest.fixture(scope="module")
def policy():
    return StagedDPTransformer(tiny_dp_transformer())


@pytest.fixture(scope="module")
def mark(policy):
    return fingerprint(policy.policy, policy.spec.block_ids)


@pytest.fixture(scope="module")
def data():
    return CalibrationData({"observation.state": torch.randn(2, 2, 5)}, KEYS)


def test_the_identity_plan_is_bit_equal_to_no_plan(policy, mark, data):
    plain = sample(as_trained(policy), data.batch, EpisodeNoise(KEYS))
    planned = sample(accelerate(policy, AccelerationPlan(mark), mark), data.batch, EpisodeNoise(KEYS))
    assert torch.equal(plain, planned)


def test_computing_everything_on_a_schedule_is_bit_equal_to_no_plan(policy, mark, data):
    everything = BlockCache(n_steps=10, updates=dict.fromkeys(policy.spec.block_ids, tuple(range(10))))
    planned = accelerate(policy, AccelerationPlan(mark, (everything,)))
    plain = sample(as_trained(policy), data.batch, EpisodeNoise(KEYS))
    assert torch.equal(plain, sample(planned, data.batch, EpisodeNoise(KEYS)))


def test_a_plan_says_how_its_chunks_are_executed(policy, mark, tmp_path):
    plan = AccelerationPlan(mark, execution=ChunkExecution(n_action_steps=2, request_at=1))
    plan.save(tmp_path)
    restored = AccelerationPlan.load(tmp_path)
    assert restored == plan
    spec = accelerate(policy, restored, mark).policy.spec
    assert (spec.n_action_steps, spec.request_at) == (2, 1)
    assert (policy.spec.n_action_steps, policy.spec.request_at) == (4, None), "the policy stays as it is"
    assert "execution" not in AccelerationPlan(mark).to_json(), "plans of before are written as they were"
    one = count_flops(accelerate(policy, plan), {"observation.state": torch.zeros(1, 2, 5)})
    assert "2 actions executed, the next asked for with 1 left" in explain(
        plan, accelerate(policy, plan), one, one
    )


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, {}),
        ({"n_action_steps": 4}, {"n_action_steps": 4}),
        ({"n_action_steps": 1}, {"n_action_steps": 1, "request_at": 1}),
        ({"request_at": 0}, {"request_at": 0}),
        ({"mode": "async"}, {"mode": "async"}),
    ],
)
def test_what_a_user_says_of_chunks_goes_before_what_the_plan_says(mark, said, wanted):
    own = {"mode": Mode.RTC, "n_action_steps": 3, "request_at": 2}
    plan = AccelerationPlan(mark, execution=ChunkExecution(**own))
    assert plan.executed(ChunkExecution(**said)).execution.chosen == own | wanted
    loop = LoopSettings(**{"mode": "async"} | said).executing(plan.execution)
    assert loop.execution == plan.execution, "in a search the candidate goes before the user"
    silent = AccelerationPlan(mark, execution=ChunkExecution(n_action_steps=3, request_at=2))
    assert LoopSettings().executing(silent.execution).execution.chosen == {"n_action_steps": 3}


@pytest.mark.parametrize(
    ("asked", "said", "mode"),
    [(None, None, "sync"), (None, "rtc", "rtc"), ("async", "rtc", "async"), ("sync", "rtc", "sync")],
)
def test_a_plan_says_the_mode_where_the_user_does_not(policy, mark, asked, said, mode):
    """So what a search confirmed is what runs beside the checkpoint, and in a bundle of it."""
    plan = AccelerationPlan(mark, execution=ChunkExecution(mode=None if said is None else Mode(said)))
    assert AccelerationPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    spec = accelerate(policy, plan).policy.spec
    assert spec.mode == said
    assert LoopSettings(mode=asked).settled(spec.mode).mode == mode


@pytest.mark.parametrize(
    ("execution", "told"),
    [
        ({"n_action_steps": 0}, "n_action_steps is 0"),
        ({"n_action_steps": 1.5}, r"n_action_steps is 1\.5"),
        ({"request_at": 3, "n_action_steps": 2}, "request_at=3 of n_action_steps=2; needed: 0..2"),
        ({"mode": "turbo"}, "mode is 'turbo'"),
        (4, "needed is an object"),
        ({"n_action_steps": 99}, "executes 99 actions of a chunk, this policy's have 7"),
        ({"request_at": 5}, "with 5 actions left, and 4 are executed"),
    ],
)
def test_a_way_to_execute_chunks_that_makes_no_sense_is_refused(policy, mark, execution, told):
    data = {**AccelerationPlan(mark).to_json(), "execution": execution}
    with pytest.raises(PlanMismatch, match=told):
        accelerate(policy, AccelerationPlan.from_json(data))


def test_plan_survives_json_and_files(policy, mark, data, tmp_path):
    wanted = [
        ("block_cache", {"updates": 3, "bubbling": 2}),
        ("hoist", {}),
        ("step_schedule", {"n_steps": 8}),
    ]
    plan = calibrate(policy, mark, data, wanted)
    assert [t.kind for t in plan.techniques] == ["step_schedule", "hoist", "block_cache"]
    assert AccelerationPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    plan.save(tmp_path)
    restored = AccelerationPlan.load(tmp_path)
    assert restored == plan
    before = sample(accelerate(policy, plan), data.batch, EpisodeNoise(KEYS))
    after = sample(accelerate(policy, restored, mark), data.batch, EpisodeNoise(KEYS))
    assert torch.equal(before, after)
    assert not list(tmp_path.glob("*.partial"))


def test_what_many_plans_share_is_calibrated_once_and_the_plans_stay_the_same(
    policy, mark, data, monkeypatch
):
    steps = ("step_schedule", {"sampler": "ddim", "n_steps": 5})
    asked = [
        [("block_cache", {"updates": 3}), ("hoist", {})],
        [("block_cache", {"updates": 2})],
        [("forecast", {}), ("hoist", {})],
        [("hoist", {}), steps, ("block_cache", {"updates": 2})],
        [steps],
        [("step_schedule", {"sampler": "ddim", "n_steps": 4})],
    ]
    alone = [calibrate(policy, mark, data, wanted) for wanted in asked]
    original, runs = StagedDPTransformer.denoise, []

    def denoise(self, *args):
        runs.append(args)
        return original(self, *args)

    monkeypatch.setattr(StagedDPTransformer, "denoise", denoise)
    calibrator = Calibrator(policy, mark, data)
    found = [calibrator.plan(wanted) for wanted in (*asked, *asked)]
    assert [plan for plan, _ in found] == [*alone, *alone]
    assert [execution.plan for _, execution in found] == [plan for plan, _ in found]
    spacings = len(alone[4].techniques[0].errors)
    recorded = {"hoisted": 10, "as trained": 10, "under five steps": 5}
    sampled = {"as trained": 10, "at every spacing of five and of four steps": spacings * (5 + 4)}
    assert len(runs) == sum(recorded.values()) + sum(sampled.values())


def test_two_techniques_on_one_seam_are_refused(mark):
    cache, forecast = BlockCache(n_steps=1, updates={}), Forecast(n_steps=1, updates={})
    with pytest.raises(PlanMismatch, match="block_cache and forecast both work on the blocks seam; keep one"):
        AccelerationPlan(mark, (cache, forecast))


@pytest.mark.parametrize(
    ("field", "value"), [("policy_type", "smolvla"), ("config", "9f3c"), ("weights", "00"), ("blocks", ())]
)
def test_a_foreign_plan_is_refused(policy, mark, field, value):
    foreign = AccelerationPlan(replace(mark, **{field: value}))
    with pytest.raises(PlanMismatch, match=f"its {field.replace('_', ' ')} differ; recalibrate"):
        accelerate(policy, foreign, mark)


def test_unknown_blocks_and_impossible_steps_are_refused(policy, mark):
    def apply(**settings):
        return accelerate(policy, AccelerationPlan(mark, (BlockCache(**settings),)))

    with pytest.raises(
        UnknownBlock, match=r"names block 'action\.15\.mlp', but .* has action\.0\.self … action\.1\.mlp"
    ):
        apply(n_steps=10, updates={"action.15.mlp": (0,)})
    with pytest.raises(PlanMismatch, match=r"needed are ascending steps from 0 to at most 9"):
        apply(n_steps=10, updates={"action.0.mlp": (0, 12)})
    with pytest.raises(PlanMismatch, match="calibrated for 7 steps, but ddpm runs 10"):
        apply(n_steps=7, updates={})


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d | {"version": 9},
        lambda d: {k: v for k, v in d.items() if k != "fingerprint"},
        lambda d: d | {"techniques": [{"kind": "hoist", "surprise": 1}]},
        lambda d: d | {"techniques": 3},
        lambda d: d | {"measurements": 3},
        lambda d: d | {"measurements": {"error": float("nan")}},
        lambda d: d | {"surprise": 1},
        lambda d: d | {"version": True},
        lambda d: d | {"fingerprint": {**d["fingerprint"], "weights": 7}},
        lambda d: d | {"fingerprint": {k: v for k, v in d["fingerprint"].items() if k != "processors"}},
        lambda d: d | {"techniques": [{"kind": ["hoist"]}]},
        lambda d: d | {"techniques": [{"kind": "hoist", "tensors": {}}]},
        lambda d: [d],
    ],
)
def test_malformed_plans_are_refused(mark, damage):
    with pytest.raises(PlanMismatch, match="recalibrate"):
        AccelerationPlan.from_json(damage(AccelerationPlan(mark, (Hoist(),)).to_json()))


def test_other_processors_refuse_a_plan(policy, mark):
    foreign = AccelerationPlan(replace(mark, processors="00"))
    message = r"its processors \(statistics of observations and actions among them\) differ; recalibrate"
    with pytest.raises(PlanMismatch, match=message):
        accelerate(policy, foreign, mark)


def test_what_was_put_in_by_hand_has_the_types_of_its_fields(mark):
    with pytest.raises(BadSetting, match=r"block_cache updates\.a\[1\] is 1\.5; needed is a whole number"):
        AccelerationPlan(mark, (BlockCache(n_steps=10, updates={"a": (0, 1.5)}),))
    with pytest.raises(BadSetting, match=r"measurements\.ratio is inf; numbers are finite"):
        AccelerationPlan(mark, (), {"ratio": float("inf")})
    with pytest.raises(PlanMismatch, match="hoist and hoist both work on the exact seam; keep one"):
        AccelerationPlan(mark, (Hoist(), Hoist()))


def test_tensors_belong_to_a_technique(mark):
    data = AccelerationPlan(mark, (Hoist(),)).to_json()
    with pytest.raises(PlanMismatch, match=r"tensor 'stand\.ids' belongs to no technique of the plan"):
        AccelerationPlan.from_json(data, {"stand.ids": torch.zeros(1)})


def test_a_plan_without_tensors_leaves_none_of_an_earlier_one(mark, tmp_path):
    compensated = MlpPrune(kept=((0,),), tensors={"0.up": torch.ones(2, 1), "0.down": torch.ones(1, 2)})
    AccelerationPlan(mark, (compensated,)).save(tmp_path)
    assert AccelerationPlan.load(tmp_path).techniques[0].tensors.keys() == {"0.up", "0.down"}
    AccelerationPlan(mark, (MlpPrune(kept=((0,),)),)).save(tmp_path)
    assert not AccelerationPlan.load(tmp_path).techniques[0].tensors


@pytest.mark.parametrize("rows", [0, 1])
def test_calibration_needs_an_observation_and_a_key_for_each(policy, mark, data, rows):
    some = CalibrationData({"observation.state": data.batch["observation.state"][:rows]}, KEYS[: 2 * rows])
    message = rf"{2 * rows} noise keys and a batch of {rows} observations; at least one observation"
    with pytest.raises(CalibrationError, match=message):
        calibrate(policy, mark, some, [("hoist", {})])


def test_a_plan_that_gives_nan_is_not_calibrated(mark, data):
    broken = tiny_dp_transformer()
    with torch.no_grad():
        broken.model.head.bias[0] = torch.nan
    message = "policy 'dp_transformer' gave NaN or infinity in 2 of 2 chunks, in row 0 first"
    with pytest.raises(NonFiniteActions, match=message):
        calibrate(StagedDPTransformer(broken), mark, data, [("step_schedule", {"n_steps": 2})])


def test_broken_files_are_refused(tmp_path):
    with pytest.raises(PlanMismatch, match="no plan at"):
        AccelerationPlan.load(tmp_path)
    (tmp_path / "acceleration.json").write_text('{"version": 1, ')
    with pytest.raises(PlanMismatch, match="is not JSON"):
        AccelerationPlan.load(tmp_path)


def test_unknown_techniques_and_options_are_refused(policy, mark, data):
    with pytest.raises(
        BadSetting, match="unknown technique 'magic'; known techniques: .*mlp_prune, .*layer_skip"
    ):
        calibrate(policy, mark, data, [("magic", {})])
    with pytest.raises(BadSetting, match="technique 'token_select' is called 'patch_select' now"):
        calibrate(policy, mark, data, [("token_select", {})])
    with pytest.raises(BadSetting, match="block_cache has no option 'interval'; its options: bubbling, "):
        calibrate(policy, mark, data, [("block_cache", {"interval": 5})])
    with pytest.raises(CalibrationError, match=r"updates=11, but the sampler runs 10 steps; choose 1\.\.10"):
        calibrate(policy, mark, data, [("block_cache", {"updates": 11})])


def test_an_old_plan_is_read_by_the_kinds_of_today(mark, tmp_path):
    data = AccelerationPlan(mark, (PatchSelect(k_final=6, method="fastv"),)).to_json()
    assert data["techniques"][0]["kind"] == "patch_select"
    data["techniques"][0]["kind"] = "token_select"
    (tmp_path / "acceleration.json").write_text(json.dumps(data))
    (found,) = AccelerationPlan.load(tmp_path).techniques
    assert found == PatchSelect(k_final=6, method="fastv")


def test_every_technique_says_what_it_is():
    for kind, technique in techniques().items():
        assert issubclass(technique, Technique)
        assert is_dataclass(technique)
        assert technique.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert technique.kind == kind
        assert technique.label
        assert isinstance(technique.is_static, bool)
        assert re.fullmatch("#[0-9a-f]{6}", technique.colour)
        assert is_dataclass(technique.Options)
        for options in technique.examples.values():
            technique.read_options(options)
    seams = [technique.seam for technique in techniques().values()]
    assert seams == sorted(seams), "not in the order of seams"


def test_what_is_no_technique_of_its_own_is_not_registered():
    said = {"kind": "other", "seam": Seam.EXACT, "label": "other", "is_static": True}
    with pytest.raises(BadSetting, match="Other does not say its seam, label, is_static"):
        register(type("Other", (Technique,), {"kind": "other"}))
    with pytest.raises(BadSetting, match="both register a technique 'hoist'; give one of them another kind"):
        register(type("Other", (Technique,), {**said, "kind": "hoist"}))
    with pytest.raises(BadSetting, match="'other' has options without a default: n; give them one"):
        register(type("Other", (Technique,), {**said, "Options": make_dataclass("Options", [("n", int)])}))
    assert "other" not in techniques()


def test_explain_shows_what_is_computed(policy, mark, data):
    updates = dict.fromkeys(policy.spec.block_ids, (0, 5))
    plan = AccelerationPlan(
        mark, (StepSchedule(n_steps=10, sampler="ddim"), BlockCache(n_steps=10, updates=updates))
    )
    execution = accelerate(policy, plan)
    assert grid(execution)["action.1.cross"] == "#····#····"
    baseline = count_flops(as_trained(policy), data.batch)
    text = explain(plan, execution, baseline, count_flops(execution, data.batch))
    assert "sampler=ddim, n_steps=10" in text
    assert "blocks" in text
    assert "80.0%" in text
    forecast = replace(plan, techniques=(Forecast(n_steps=10, updates=updates, order=1),))
    assert grid(accelerate(policy, forecast))["action.0.self"] == "#····#~~~~"
    assert set(grid(as_trained(policy)).values()) == {"#" * 10}


@pytest.mark.parametrize("width", [80, 40, 200])
def test_a_grid_of_a_hundred_steps_fits_the_terminal(width):
    """G15: it goes on below, no step is lost, and the count stands at the end."""
    marks = "#" + "·" * 49 + "#" + "·" * 48 + "#"
    lines = _grid_lines({"action.10.cross": marks, "action.1.mlp": "#" * 100}, width)
    assert max(map(len, lines)) <= width
    own = [line.split() for line in lines if line.startswith("action.10.cross ")]
    assert "".join(words[1] for words in own) == marks
    assert [words[2:] for words in own] == [[]] * (len(own) - 1) + [["3"]]
    assert lines[0].startswith("steps 0 to ") == (width < 200)
    assert _grid_lines({}, width) == []


def test_a_plan_measured_in_another_dtype_says_so(mark):
    plan = AccelerationPlan(mark, (), {"dtype": "float32", "action_error": 0.01})
    assert measured(plan) == measured(plan, "float32")
    told = "measured in float32, run in bfloat16: how far off it is there, was not measured"
    assert measured(plan, "bfloat16") == f"{measured(plan)}; {told}"
    assert measured(AccelerationPlan(mark), "bfloat16") == measured(AccelerationPlan(mark))
