"""The search space is what is registered and fits: no technique and no combination is named by the tuner."""

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import IntDistribution

from vivace.accel import registry
from vivace.accel.apply import accelerate, calibrate
from vivace.accel.rows import make_rows
from vivace.accel.technique import CalibrationData, Need, Seam, Technique
from vivace.eval.measure.variants import variants_of
from vivace.eval.tune.candidate import Candidate, Origin, Status, Trial
from vivace.eval.tune.space import describe, space_of
from vivace.eval.tune.study import Study
from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.load import stage
from vivace.policies.spec import ChunkExecution, Fingerprint, Mode
from vivace.policies.tiny.policies import tiny_cogact, tiny_dp_transformer, tiny_token_vla

POLICIES = {"dp_transformer": tiny_dp_transformer, "cogact": tiny_cogact, "token_vla": tiny_token_vla}


@pytest.fixture(scope="module", params=POLICIES)
def staged(request):
    return stage(POLICIES[request.param]())


@pytest.fixture
def toy(monkeypatch):
    """A technique of its own, on the seam of blocks; what is known is restored in the end."""
    monkeypatch.setattr(registry, "_KNOWN", dict(registry.techniques()))

    @dataclass(frozen=True, kw_only=True)
    class EveryNthOptions:
        n: int = 2

    @registry.register
    @dataclass(frozen=True, kw_only=True)
    class EveryNth(Technique):
        kind: ClassVar[str] = "every_nth"
        seam: ClassVar[Seam] = Seam.BLOCKS
        label: ClassVar[str] = "every n-th step"
        needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER,)
        is_static: ClassVar[bool] = True
        Options: ClassVar[type] = EveryNthOptions
        n: int = 2

        def apply(self, execution):
            spec, steps = execution.policy.spec, len(execution.sampler)
            updates = dict.fromkeys(spec.block_ids, tuple(range(0, steps, self.n)))
            return replace(execution, action=make_rows(spec.blocks, updates, steps))

        @classmethod
        def search_space(cls, staged):
            return {"n": range(2, 6)}

    return EveryNth


def suggested(space, n=60):
    study = optuna.create_study(directions=["minimize"] * 2, sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask()) for _ in range(n)]


def test_a_registered_technique_is_searched_and_its_default_is_looked_at_first(toy):
    space = space_of(stage(tiny_dp_transformer()))
    asked = [dict(one.requests)["every_nth"] for one in suggested(space, 200) if "every_nth" in one.kinds]
    assert {options["n"] for options in asked} == {2, 3, 4, 5}
    first = [one for one in space.starters() if "every_nth" in one.kinds]
    assert [(one.origin, dict(one.requests)["every_nth"]) for one in first] == [(Origin.DEFAULT, {"n": 2})]


def test_a_technique_that_does_not_fit_is_not_searched(toy):
    assert "every_nth" not in space_of(stage(tiny_token_vla())).kinds


def test_two_on_one_seam_are_never_chosen_together(staged, toy):
    """A plan would refuse them; the space knows it from the seams alone."""
    known = registry.techniques()
    for candidate in suggested(space_of(staged), 200):
        seams = [known[kind].seam for kind in candidate.kinds if not known[kind].seam.holds_many]
        assert len(seams) == len(set(seams)), candidate.kinds


def test_exact_work_is_removed_from_everything_but_the_policy_as_trained(staged):
    space = space_of(staged)
    exact = {kind for kind, _ in registry.exact_work(staged)}
    looked_at = [*space.starters(), *suggested(space)]
    bare = [one for one in looked_at if not exact <= set(one.kinds)]
    assert [one.origin for one in bare] in ([], [Origin.TRAINED])


def test_what_takes_a_minute_to_start_is_tried_where_that_is_asked_for(staged):
    kinds = {kind for one in space_of(staged).starters() for kind in one.kinds}
    assert "compile" not in {*kinds, *space_of(staged).kinds}
    assert "compile" in space_of(staged, ["step_schedule", "compile"]).same_work
    patient = space_of(staged, compiles=True)
    assert "compile" in patient.same_work
    late = [one for one in patient.starters() if one.starts_late]
    assert [one.label for one in late if one.origin is Origin.BASELINE] == ["as trained, torch.compile"]
    assert any(set(one.kinds) == {"compile", *dict(patient.exact)} for one in late)


def test_what_has_to_be_beaten_comes_first_and_every_row_of_the_tables_is_there(staged):
    space = space_of(staged)
    starters = space.starters()
    assert starters[0].origin is Origin.TRAINED
    rivals = [one.origin.is_rival for one in starters]
    assert rivals == sorted(rivals, reverse=True)
    keys = {one.key for one in starters}
    assert len(keys) == len(starters)
    exact = dict(space.exact)
    for row in variants_of(staged):
        if not row.is_compiled:
            requests = {**exact, **dict(row.wanted)} if row.wanted else {}
            assert (
                Candidate(tuple(requests.items()), ChunkExecution(n_action_steps=row.n_action_steps)).key
                in keys
            ), row.name


def test_a_candidate_is_said_back_in_the_names_it_was_chosen_by(staged):
    """What is said of it are choices by which it would be chosen again."""
    space = space_of(staged)
    for candidate in suggested(space, 60):
        params = {name: value for name, (value, _) in space.choices_of(candidate).items()}
        again = space.suggest(optuna.trial.FixedTrial(params))
        assert again.key == candidate.key


def test_what_is_said_of_rows_and_defaults_is_in_the_space(staged):
    """Also where their options are not what the space would choose."""
    space = space_of(staged)
    for candidate in space.starters():
        for value, kind in space.choices_of(candidate).values():
            assert kind._contains(kind.to_internal_repr(value))


def test_no_choice_of_steps_and_cache_is_refused_or_the_same_as_another():
    """A cache of as many updates as there are steps is none; named spacings may mean the same times."""
    staged = stage(tiny_dp_transformer())
    space = space_of(staged, ["step_schedule", "block_cache"])
    data = CalibrationData({"observation.state": torch.randn(2, 2, 5)}, ((7, 0), (7, 1)))
    mark, times = Fingerprint("dp_transformer", "", "", "", ()), {}
    for candidate in suggested(space, 40):
        requests = dict(candidate.requests)
        plan = calibrate(staged, mark, data, candidate.requests)
        made = accelerate(staged, plan)
        called = tuple(step.table.t for step in made.sampler.steps)
        schedule = str(requests.get("step_schedule"))
        assert times.setdefault((made.sampler.name, called), schedule) == schedule
        if "block_cache" in requests:
            updates = plan.techniques[-1].updates.values()
            assert any(len(steps) < len(called) for steps in updates), requests
    assert len(times) > 15


def test_one_bred_from_another_is_like_it_and_in_the_space(staged):
    space, random = space_of(staged), np.random.default_rng(0)
    for parent in suggested(space, 20):
        child = space.bred(parent, random)
        params = {name: value for name, (value, _) in space.choices_of(child).items()}
        assert space.suggest(optuna.trial.FixedTrial(params)).key == child.key
    parent = suggested(space, 1)[0]
    own = {name: value for name, (value, _) in space.choices_of(parent).items()}
    children = [space.choices_of(space.bred(parent, random)) for _ in range(50)]
    same = [sum(own.get(name) == value for name, (value, _) in one.items()) / len(one) for one in children]
    assert 0.4 < np.mean(same) < 1


def test_a_child_executes_chunks_as_its_parent_does_or_in_a_way_that_is_offered(staged):
    space, random = space_of(staged), np.random.default_rng(0)
    parent = replace(suggested(space, 1)[0], execution=ChunkExecution(n_action_steps=1))
    assert {space.bred(parent, random).execution for _ in range(20)} == {parent.execution}
    offered = space.executions(is_sync=False)
    children = [space.bred(parent, random, offered) for _ in range(100)]
    seen = {child.execution for child in children}
    assert {parent.execution, *offered} <= seen <= {parent.execution, *offered, ChunkExecution()}
    for one in (*children, *space.neighbours(parent)):
        assert ("executed" in describe(one)) == (one.execution.n_action_steps is not None)
        assert describe(one).count("asked for with") == (one.execution.request_at is not None)
    assert sum(child.execution == parent.execution for child in children) > 60
    for child in children:
        if child.execution.n_action_steps:
            assert len(re.findall(r"\d actions? executed", describe(child))) == 1


def test_every_choice_can_be_calibrated_by_name(staged):
    """What a space offers, options take: else every trial of it would fail."""
    known = registry.techniques()
    for candidate in suggested(space_of(staged), 100):
        for kind, options in candidate.requests:
            known[kind].read_options(options)


def test_what_only_a_clock_knows_is_added_to_a_plan_and_not_counted(staged):
    space, known = space_of(staged), registry.techniques()
    assert all(not known[kind].saves_flops for kind in space.same_work)
    rows = [one for one in space.starters() if one.same_work]
    assert {kind for one in rows for kind, _ in one.same_work} == set(space.same_work)
    for one in suggested(space, 5):
        assert not one.same_work
        for row in rows:
            both = one.computed_as(row)
            assert both.requests == (*one.requests, *row.same_work)
            child = space.bred(both, np.random.default_rng(0))
            assert child.same_work == row.same_work, "it stays"


def test_without_a_world_nothing_follows_chunks_before(staged):
    space, known = space_of(staged, is_world=False), registry.techniques()
    for one in (*space.starters(), *suggested(space, 30)):
        assert all(known[kind].seam is not Seam.CARRY for kind in one.kinds)


def test_a_key_says_what_a_candidate_is_and_not_what_it_is_called():
    one = Candidate((("hoist", {}), ("step_schedule", {"n_steps": 4})), label="four")
    same = Candidate((("step_schedule", {"n_steps": 4}), ("hoist", {})), origin=Origin.DEFAULT)
    assert one.key == same.key == Candidate.from_json(one.to_json()).key
    assert one.key != Candidate(one.requests, ChunkExecution(n_action_steps=2)).key
    assert one.key != Candidate(one.requests, ChunkExecution(mode=Mode.RTC)).key
    assert Candidate().key == "e4868431aec4", "an earlier version's search goes on"
    assert one.key != Candidate((("hoist", {}), ("step_schedule", {"n_steps": 5}))).key


@pytest.mark.parametrize(
    ("only", "error", "told"),
    [
        ([], BadSetting, "tune.techniques is empty"),
        (["hosit"], BadSetting, "names 'hosit'; known techniques"),
        (["jacobi"], UnsupportedPolicy, "no technique of --tune.techniques fits policy 'dp_transformer'"),
    ],
)
def test_a_space_narrowed_to_nothing_is_refused(only, error, told):
    with pytest.raises(error, match=told):
        space_of(stage(tiny_dp_transformer()), only)


def test_a_policy_that_no_technique_fits_is_refused():
    opaque = OpaquePolicy(tiny_dp_transformer())
    with pytest.raises(UnsupportedPolicy, match="no technique fits policy 'dp_transformer'"):
        space_of(opaque)


def test_a_narrowed_space_has_those_techniques_alone():
    space = space_of(stage(tiny_dp_transformer()), ["step_schedule"])
    assert space.kinds == ("step_schedule",)
    searched = [one for one in (*space.starters(), *suggested(space)) if not one.origin.is_rival]
    assert {kind for one in searched for kind in one.kinds} == {"step_schedule", "hoist"}


def told(space, study, n, begun=()):
    """Ask and tell, with work and errors that are functions of the candidate."""
    trials = list(begun)
    for trial in begun:
        study.tell(trial)
    while len(trials) < n:
        candidate = study.ask()
        work = int(candidate.key, 16) % 997
        trials.append(
            Trial(candidate=candidate, status=Status.COUNTED, flops=1 + work, action_error=1 / (1 + work))
        )
        study.tell(trials[-1])
    return trials


def test_a_search_that_goes_on_asks_for_what_it_would_have_asked_for():
    space = space_of(stage(tiny_dp_transformer()))
    whole = told(space, Study(space, 3), 24)
    resumed = told(space, Study(space, 3), 24, whole[:13])
    assert [trial.key for trial in resumed] == [trial.key for trial in whole]
    assert len({trial.key for trial in whole}) == 24
    other = told(space, Study(space, 4), 24)
    assert [trial.key for trial in other] != [trial.key for trial in whole]


def test_neighbours_are_other_candidates_in_which_every_number_moves(staged):
    space = space_of(staged)
    for candidate in suggested(space, 10):
        near = [space.choices_of(one) for one in space.neighbours(candidate)]
        assert near
        assert candidate.key not in {one.key for one in space.neighbours(candidate)}
        assert all(set(dict(space.exact)) <= set(one.kinds) for one in space.neighbours(candidate))
        for name, (value, among) in space.choices_of(candidate).items():
            if isinstance(among, IntDistribution):
                found = {other[name][0] for other in near if name in other}
                assert found - {value} or among.low == among.high, name


def test_neighbours_lead_to_fewer_layers_from_a_plan_that_drops_none():
    """What no search had bred: two layers fewer behind the one pass that a plan takes."""
    space = space_of(stage(tiny_token_vla()), ["layer_skip", "jacobi"])
    one_pass = Candidate((("jacobi", {"max_iterations": 1, "until": "all"}), *space.exact))
    kinds = [set(one.kinds) - {kind for kind, _ in space.exact} for one in space.neighbours(one_pass)]
    assert {"layer_skip", "jacobi"} in kinds


def test_chunks_that_continue_others_are_tried_whole_where_no_mode_was_asked_for():
    staged, rtc = stage(tiny_dp_transformer()), ChunkExecution(mode=Mode.RTC)
    space = space_of(staged, may_continue=True)
    short = Candidate((("dead_actions", {}), *space.exact))
    assert rtc in list(space.ways(short, is_sync=False))
    assert space.executed(short, rtc).requests == space.exact
    early = ChunkExecution(request_at=staged.spec.n_action_steps)
    assert space.executed(short, early).requests == short.requests
    assert space.executed(replace(short, label="short"), rtc).label == "short, mode rtc, chunks whole"
    for ways in (space.ways(short, is_sync=True), space_of(staged).ways(short, is_sync=False)):
        assert all(one.mode is None for one in ways)
