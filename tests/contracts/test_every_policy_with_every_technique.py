"""What every technique promises on every policy; those that lack what it works on refuse it by name."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from policy_cases import DENOISER, KEYS, LANGUAGE, POLICIES, TOKENS, observations
from support_table import LACKS, shows
from technique_cases import daily, examples, needs

from vivace.accel.apply import accelerate, calibrate, exact_plan
from vivace.accel.explain import explain, grid
from vivace.accel.flops import Flops, count_by_shapes, count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.registry import techniques
from vivace.accel.technique import CalibrationData, Need
from vivace.accel.techniques.compile import compile_execution
from vivace.eval.measure.variants import unfit, variants_of
from vivace.policies.block import Block
from vivace.policies.errors import BadSetting, PlanMismatch, UnknownBlock, UnsupportedPolicy
from vivace.policies.execution import (
    Denoising,
    Execution,
    as_trained,
    check_continuing,
    decode,
    executing,
    sample,
)
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.plain_data import Between
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.real_time_chunking import Continuation, RealTimeChunking
from vivace.policies.spec import Fingerprint
from vivace.policies.staged import continues_itself
from vivace.policies.tiny.policies import tiny_clip


def with_(*wanted: Need) -> Any:
    """Parametrise a test by the policies that have all of these."""
    names = [name for name, (_, has) in POLICIES.items() if has.issuperset(wanted)]
    return pytest.mark.parametrize("subject", names, indirect=True)


@dataclass(frozen=True)
class Subject:
    """A policy, and what to run it on."""

    policy: Any
    staged: Any
    mark: Fingerprint
    data: CalibrationData
    has: set[Need]

    @cached_property
    def plain(self) -> torch.Tensor:
        """Its chunks as trained, computed once for all tests."""
        return run(as_trained(self.staged), self)

    @cached_property
    def plain_costs(self) -> Flops:
        """What one of them costs."""
        return count_flops(as_trained(self.staged), self.data.one)


@pytest.fixture(scope="module")
def subject(request, tmp_path_factory) -> Subject:
    make, has = POLICIES[request.param]
    policy = make(tiny_clip(tmp_path_factory.mktemp("miniature")))
    staged = stage(policy)
    mark = fingerprint(policy, staged.spec.block_ids)
    return Subject(policy, staged, mark, CalibrationData(observations(policy), KEYS), has)


EXAMPLES = examples()
FORGETS = {"xvla": 0.95}
"""Types that predict clean actions, where random weights hardly look at x -> what is left of the way."""


@pytest.mark.parametrize(
    ("subject", "kind"),
    [
        pytest.param(policy, kind, marks=shows(kind, policy.split("-")[0], LACKS))
        for policy, (_, has) in POLICIES.items()
        for kind in techniques()
        if not has.issuperset(needs([kind]))
    ],
    indirect=["subject"],
)
def test_a_policy_that_lacks_what_a_technique_works_on_refuses_by_name(subject, kind):
    with pytest.raises(UnsupportedPolicy, match=f"{kind} .* policy '{subject.staged.spec.type}' .*leave it"):
        calibrate(subject.staged, subject.mark, subject.data, [(kind, {})])


DAILY = daily({name: has for name, (_, has) in POLICIES.items()})


def marks(policy: str, example: str) -> list[pytest.MarkDecorator]:
    """When a pair is run, and what it shows: of a technique alone that it works on the policy."""
    when = [] if (policy, example) in DAILY else [pytest.mark.long]
    kinds = [kind for kind, _ in EXAMPLES[example]]
    return when + [shows(kind, policy.split("-")[0]) for kind in kinds if len(kinds) == 1]


every_pair = pytest.mark.parametrize(
    ("subject", "plan"),
    [
        pytest.param(policy, name, marks=marks(policy, name))
        for policy, (_, has) in POLICIES.items()
        for name, wanted in EXAMPLES.items()
        if has.issuperset(needs(kind for kind, _ in wanted))
    ],
    indirect=True,
)


@pytest.fixture
def plan(request, subject) -> AccelerationPlan:
    return calibrate(subject.staged, subject.mark, subject.data, EXAMPLES[request.param])


def executed(actions: torch.Tensor, subject: Subject) -> torch.Tensor:
    spec = subject.staged.spec
    return actions[:, spec.first_action : spec.first_action + spec.n_action_steps]


def run(execution, subject) -> torch.Tensor:
    return sample(execution, subject.data.batch, EpisodeNoise(subject.data.noise_keys))


@every_pair
def test_a_plan_keeps_its_promises(subject, plan, tmp_path):
    before = {name: value.clone() for name, value in subject.policy.state_dict().items()}
    reference = subject.plain
    execution = accelerate(subject.staged, plan, subject.mark)
    actions = run(execution, subject)
    assert actions.shape == (len(reference), execution.policy.spec.horizon, reference.shape[2])
    assert actions.isfinite().all()
    assert torch.equal(actions, run(execution, subject)), "not deterministic"
    assert torch.equal(reference, run(as_trained(subject.staged), subject)), "the policy itself was changed"
    after = subject.policy.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    plan.save(tmp_path)
    restored = AccelerationPlan.load(tmp_path)
    assert restored == plan
    assert torch.equal(actions, run(accelerate(subject.staged, restored, subject.mark), subject))
    if all(technique.is_exact for technique in plan.techniques):
        torch.testing.assert_close(
            executed(actions, subject), executed(reference, subject), atol=1e-5, rtol=0
        )
    costs = subject.plain_costs, count_flops(execution, subject.data.one)
    if TOKENS not in subject.has:  # there it depends on how many guesses are right
        assert costs[1].total <= costs[0].total
        if any(technique.saves_flops for technique in plan.techniques):
            assert costs[1].total < costs[0].total
    text = explain(plan, execution, *costs)
    marks = grid(execution)
    assert list(marks) == list(execution.policy.spec.block_ids)
    assert all(name in text and len(row) == len(execution.sampler) for name, row in marks.items())


@with_()
def test_work_is_counted_without_computing_it(subject):
    assert count_by_shapes(as_trained(subject.staged), subject.data.one) == subject.plain_costs
    assert torch.equal(subject.plain, run(as_trained(subject.staged), subject)), "nothing of it stays behind"


@pytest.mark.long
@every_pair
def test_work_under_a_plan_is_counted_without_computing_it(subject, plan):
    execution = accelerate(subject.staged, plan, subject.mark)
    actions = run(execution, subject)
    assert count_by_shapes(execution, subject.data.one) == count_flops(execution, subject.data.one)
    assert torch.equal(actions, run(execution, subject)), "nothing of it stays behind"


@with_()
def test_a_plan_of_other_weights_is_refused(subject):
    foreign = AccelerationPlan(replace(subject.mark, weights="0" * 64))
    with pytest.raises(PlanMismatch, match=r"its weights differ; recalibrate"):
        accelerate(subject.staged, foreign, subject.mark)


@with_()
def test_the_identity_plan_is_no_plan_bit_for_bit(subject):
    assert torch.equal(
        subject.plain, run(accelerate(subject.staged, AccelerationPlan(subject.mark)), subject)
    )


@pytest.mark.shows("exact", by="subject")
@with_()
def test_work_that_nobody_needs_is_left_out_at_no_error(subject):
    """What is done where nobody says what: `hoist`, dead work, and whatever else is exact."""
    plan = exact_plan(subject.staged, subject.mark)
    assert all(technique.is_exact for technique in plan.techniques)
    exact = accelerate(subject.staged, plan, subject.mark)
    found, wanted = (executed(chunks, subject) for chunks in (run(exact, subject), subject.plain))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    if TOKENS not in subject.has:  # there it depends on how many guesses are right
        costs = count_flops(exact, subject.data.one).total, subject.plain_costs.total
        assert costs[0] < costs[1] if plan.techniques else costs[0] == costs[1]


@pytest.mark.parametrize("kind", ["block_cache", "forecast"])
@with_(DENOISER)
def test_computing_every_step_is_the_plain_loop_bit_for_bit(subject, kind):
    options = {"method": "uniform", "updates": len(subject.staged.sampler)}
    plan = calibrate(subject.staged, subject.mark, subject.data, [(kind, options)])
    execution = accelerate(subject.staged, plan)
    assert torch.equal(subject.plain, run(execution, subject))


@with_(DENOISER)
def test_hoisting_changes_rounding_only(subject):
    plan = calibrate(subject.staged, subject.mark, subject.data, [("hoist", {})])
    hoisted = run(accelerate(subject.staged, plan), subject)
    torch.testing.assert_close(hoisted, subject.plain, atol=1e-5, rtol=0)


@with_()
def test_what_a_technique_would_search_it_can_be(subject):
    for kind, technique in techniques().items():
        if not subject.has.issuperset(technique.needs):
            continue
        for seed in range(8):
            random = np.random.default_rng(seed)

            def choose(option, choices, widest=None, kind=kind, random=random):
                ends = (choices.low, choices.high) if isinstance(choices, Between) else choices
                assert len(set(ends)) > 1 or widest, f"{kind} has one {option}"
                return ends[int(random.integers(len(ends)))]

            options = technique.search(subject.staged, (), choose)
            if options is not None:
                technique.read_options(options)


@with_()
def test_the_rows_of_a_table_are_told_apart_and_can_be_asked_for(subject):
    rows = variants_of(subject.staged)
    assert len({row.name for row in rows}) == len({row.label for row in rows}) == len(rows)
    asked = {kind for row in rows for kind, _ in row.wanted}
    assert asked == {kind for kind in techniques() if subject.has.issuperset(needs([kind]))}
    assert {kind for kinds in unfit(subject.staged) for kind in kinds.split(", ")}.isdisjoint(asked)
    for row in rows:
        for kind, options in row.wanted:
            techniques()[kind].read_options(options)


@with_(DENOISER)
def test_a_block_of_another_policy_is_named(subject):
    plan = calibrate(
        subject.staged, subject.mark, subject.data, [("block_cache", {"updates": 3, "bubbling": 0})]
    )
    data = plan.to_json()
    data["techniques"][0]["updates"]["language.7.attn"] = [0, 3]
    with pytest.raises(UnknownBlock, match=r"names block 'language\.7\.attn', but policy '.*' has action\."):
        accelerate(subject.staged, AccelerationPlan.from_json(data))


@pytest.mark.parametrize("jacobian", ["identity", "exact"])
@with_(DENOISER)
def test_a_cached_chunk_continues_the_one_before(subject, jacobian):
    wanted = [("hoist", {}), ("block_cache", {"method": "uniform", "updates": 5})]
    execution = accelerate(subject.staged, calibrate(subject.staged, subject.mark, subject.data, wanted))
    free = run(execution, subject)
    if continues_itself(subject.staged) and jacobian == "exact":
        with pytest.raises(BadSetting, match="continues chunks by lerobot's own real-time chunking"):
            check_continuing(execution, RealTimeChunking(jacobian=jacobian))
        return
    wish = torch.full_like(free, 0.3)
    weights = torch.zeros(*free.shape[:2], 1)
    weights[:, : free.shape[1] // 2] = 1
    follow = Continuation(RealTimeChunking(jacobian=jacobian), wish, weights)
    noise = EpisodeNoise(subject.data.noise_keys)
    found = sample(execution, subject.data.batch, noise, follow=follow)
    assert found.isfinite().all()
    assert not torch.equal(found, free)
    if jacobian == "identity":  # the derivative of random weights may point anywhere
        half = slice(0, free.shape[1] // 2)
        share = FORGETS.get(subject.staged.spec.type, 0.7)
        assert (found - wish)[:, half].abs().mean() < share * (free - wish)[:, half].abs().mean()


@with_(TOKENS)
def test_tokens_continue_nothing(subject):
    follow = Continuation(RealTimeChunking(), torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    noise = EpisodeNoise(subject.data.noise_keys)
    with pytest.raises(UnsupportedPolicy, match=f"policy '{subject.staged.spec.type}' has none of its own"):
        sample(as_trained(subject.staged), subject.data.batch, noise, follow=follow)


@with_()
def test_a_policy_has_what_it_is_said_to_have(subject):
    is_machines = {Need.GPU, Need.COMPILER}
    assert {need for need in Need if need.is_met(subject.staged)} - is_machines == subject.has


def counted(execution: Execution, subject: Subject) -> tuple[Execution, list[int], int]:
    """Compile; returns it, a list that every run of a graph lengthens, and how much `encode` does."""
    runs: list[int] = []
    compiled = compile_execution(execution, lambda graph, _: lambda *args: (runs.append(1), graph(*args))[1])
    compiled.policy.encode(subject.data.batch)
    in_encode = len(runs)
    assert in_encode or LANGUAGE not in subject.has, "a language stage is compiled"
    runs.clear()
    return compiled, runs, in_encode


CACHED = [("hoist", {}), ("block_cache", {"method": "uniform", "updates": 2})]
COMPILED_DAILY = {"dp_transformer": ([], CACHED), "cogact": (CACHED,)}
"""Policy -> what is compiled of it every day; compiling takes many seconds."""


@pytest.mark.parametrize(
    ("subject", "wanted"),
    [
        pytest.param(
            policy, wanted, marks=[] if wanted in COMPILED_DAILY.get(policy, ()) else pytest.mark.long
        )
        for policy, (_, has) in POLICIES.items()
        for wanted in ([], CACHED)
        if TOKENS not in has and (not wanted or DENOISER in has)
    ],
    indirect=["subject"],
)
def test_what_eager_code_computes_compiled_code_computes(subject, wanted):
    execution = accelerate(subject.staged, calibrate(subject.staged, subject.mark, subject.data, wanted))
    compiled, runs, in_encode = counted(execution, subject)
    torch.testing.assert_close(run(compiled, subject), run(execution, subject), atol=1e-5, rtol=0)
    assert len(runs) - in_encode == len(execution.sampler), "one graph a step"


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(name, marks=[] if name == "token_vla" else pytest.mark.long)
        for name, (_, has) in POLICIES.items()
        if TOKENS in has
    ],
    indirect=True,
)
def test_every_pass_over_tokens_is_compiled_code(subject):
    execution, noise = as_trained(subject.staged), EpisodeNoise(subject.data.noise_keys)
    compiled, runs, in_encode = counted(execution, subject)
    found, wanted = (decode(how, subject.data.batch, noise) for how in (compiled, execution))
    assert torch.equal(found.tokens, wanted.tokens)
    assert len(runs) - in_encode == wanted.passes.max()


@with_()
def test_a_twin_runs_other_blocks_everywhere(subject):
    ran, spec = Counter(), subject.staged.spec

    def told(block: Block) -> Block:
        return replace(block, fn=lambda *args: (ran.update([block.id]), block.fn(*args))[1])

    twin = subject.staged.with_blocks(told)
    assert torch.equal(run(as_trained(twin), subject), subject.plain)
    language = {block.id for block in subject.staged.language.blocks} if LANGUAGE in subject.has else set()
    assert {name for name in ran if name.startswith(("action.", "language."))} == {*spec.block_ids, *language}
    steps = 0 if TOKENS in subject.has else len(subject.staged.sampler)
    assert {ran[name] for name in spec.block_ids} == {steps} - {0}
    if language:  # as often as each other: once a chunk, and once a pass over tokens
        assert len({ran[name] for name in language}) == 1
        assert ran[min(language)] > 1 or TOKENS not in subject.has


@with_(LANGUAGE)
def test_a_twin_of_fewer_layers_keeps_the_other_blocks(subject):
    ran = []
    twin = subject.staged.with_blocks(
        lambda block: replace(block, fn=lambda *args: (ran.append(block.id), block.fn(*args))[1])
    )
    twin.with_layers((0, 2)).encode(subject.data.batch)
    found = [name for name in ran if not name.startswith("context.")]
    assert found == [f"language.{i}.{branch}" for i in (0, 2) for branch in ("kv", "attn", "mlp")]


@with_(DENOISER)
def test_what_is_hoisted_refuses_the_steps_of_another_sampler(subject):
    hoisted = subject.staged.hoist(subject.staged.sampler)
    other = subject.staged.resample(subject.staged.sampler.name, len(subject.staged.sampler))
    with pytest.raises(PlanMismatch, match="asked for a step of another one; hoist the policy"):
        run(Denoising(hoisted, other), subject)
    again = hoisted.hoist(other)
    assert torch.equal(run(Denoising(again, other), subject), run(as_trained(hoisted), subject))


@with_()
def test_blocks_that_were_replaced_are_not_lost_in_silence(subject):
    twin = subject.staged.with_blocks(lambda block: block)
    if LANGUAGE in subject.has:
        with pytest.raises(UnsupportedPolicy, match="exchange its weights before they are replaced"):
            twin.with_weights(subject.policy)
    if DENOISER in subject.has:
        with pytest.raises(UnsupportedPolicy, match="hoist before they are replaced"):
            twin.hoist(twin.sampler)


@with_()
def test_a_twin_executes_as_many_actions_as_it_was_told(subject):
    few = executing(subject.staged, 1)
    twins = [few.with_weights(subject.policy)] if LANGUAGE in subject.has else []
    twins += [few.hoist(few.sampler)] if DENOISER in subject.has else []
    assert few.spec.n_action_steps == 1
    assert all(twin.spec == few.spec for twin in twins)
