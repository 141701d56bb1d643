"""A bundle does what lerobot's own path does, from raw observations to actions in the robot's units."""

import copy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    DeviceProcessorStep,
    ImageCropResizeProcessorStep,
    NormalizerProcessorStep,
    RelativeActionsProcessorStep,
    RenameObservationsProcessorStep,
    TokenizerProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot_policies import TASK, saved, statistics
from lerobot_policies import save as save_lerobots
from safetensors.numpy import load_file, save_file

from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.form import MASK, TOKENS
from vivace.deploy.export.export import export
from vivace.deploy.export.lerobot_path import lerobots, path_error, plausible
from vivace.deploy.export.parity import prove_processors
from vivace.deploy.export.processors import read_processors
from vivace.deploy.export.prompts import padded, prompts, with_tokenizer
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.deploy.inference.tokenize import InstructionTokenizer
from vivace.eval.training.fit import save
from vivace.policies.errors import ObservationMismatch, ParityError, UnsupportedPolicy
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.load import load_policy, stage
from vivace.policies.session import Session
from vivace.policies.spec import DELAY, PREVIOUS, STATE
from vivace.policies.tiny.policies import tiny_dp_transformer

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
MODES = ("MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10", "IDENTITY")
TOLERANCE = 1e-4
"""Of normalised actions."""


NUMBERS = {
    STATE: PolicyFeature(FeatureType.STATE, (5,)),
    "observation.environment_state": PolicyFeature(FeatureType.ENV, (2,)),
}


def numbers_only(kind, base):
    """A checkpoint of a policy without pictures, with statistics of every kind."""
    if kind == "diffusion":
        return save_lerobots(kind, base / "policy", input_features=NUMBERS)
    policy = tiny_dp_transformer(input_features=NUMBERS)
    processors = make_dp_transformer_pre_post_processors(policy.config, statistics(policy.config))
    save(policy, *processors, base / "policy")
    return base / "policy"


@cache
def once(kind):
    """A checkpoint of lerobot's."""
    changes = {"image_resize_shape": (40, 40)} if kind == "multi_task_dit" else {}
    return load_policy(saved(kind, **changes))


def seen_by(loaded):
    """What the robot's observations are, whatever the config says (A14)."""
    spec = loaded.staged.spec
    if not spec.resizes:
        return spec
    sizes = {key: (3, 60, 80) if "image" in key else shape for key, shape in spec.observation_shapes.items()}
    return replace(spec, observation_shapes=sizes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Kind -> the checkpoint and its bundle as trained, made when they are asked for.

    "multi_task_dit" sees two cameras, larger than its config says, for it resizes pictures (A14); it renames
    one of them and has relative actions (`whole`). The two others see numbers only, and are exported quickly.
    """
    made = {}

    def make(kind):
        if kind not in made:
            base = tmp_path_factory.mktemp(kind)
            loaded = once(kind) if kind == "multi_task_dit" else load_policy(numbers_only(kind, base))
            asked = whole(loaded) if kind == "multi_task_dit" else loaded
            raw = raw_of(asked)
            batch = Session(asked, task=TASK).prepare(raw)
            data = CalibrationData(batch, ((2, 0),), raw=raw)
            plan = AccelerationPlan(loaded.fingerprint)
            made[kind] = loaded, export(asked, plan, data, base / "bundle", [TASK])
        return made[kind]

    return make


def raw_of(loaded):
    """A window of one observation, as the robot gives it."""
    n = loaded.staged.spec.n_obs_steps
    return {key: np.stack([value] * n)[None] for key, value in plausible(loaded, seen_by(loaded)).items()}


def whole(loaded):
    """A checkpoint that renames a camera, and whose actions are relative."""
    return relative(renaming(loaded, observation__images__top="observation__images__front"))


def renaming(loaded, **map_):
    names = {old.replace("__", "."): new.replace("__", ".") for old, new in map_.items()}
    steps = [RenameObservationsProcessorStep(rename_map=names), *loaded.preprocess.steps]
    preprocess = with_steps(loaded.preprocess, steps)
    return replace(loaded, preprocess=preprocess, staged=stage(loaded.policy, (), preprocess))


def relative(loaded, **options):
    made = RelativeActionsProcessorStep(enabled=True, **options)
    absolute = AbsoluteActionsProcessorStep(enabled=True, relative_step=made)
    before, behind = list(loaded.preprocess.steps), list(loaded.postprocess.steps)
    place = next(i for i, step in enumerate(before) if isinstance(step, NormalizerProcessorStep))
    after = next(i for i, step in enumerate(behind) if isinstance(step, UnnormalizerProcessorStep)) + 1
    return replace(
        loaded,
        preprocess=with_steps(loaded.preprocess, [*before[:place], made, *before[place:]]),
        postprocess=with_steps(loaded.postprocess, [*behind[:after], absolute, *behind[after:]]),
    )


def with_steps(pipeline, steps):
    twin = copy.copy(pipeline)
    twin.steps = list(steps)
    return twin


def episode(loaded, n_ticks, is_still_from):
    """Observations of an episode, the same from a tick on."""
    spec, random, found = seen_by(loaded), np.random.default_rng(5), []
    for _ in range(min(n_ticks, is_still_from + 1)):
        found.append(
            {
                key: random.integers(0, 256, (*shape[1:], shape[0]), dtype=np.uint8)
                if "image" in key
                else random.uniform(1, 5, shape).astype(np.float32)
                for key, shape in spec.observation_shapes.items()
            }
        )
    return found + found[-1:] * (n_ticks - len(found))


def around(loaded, bundle):
    """A bundle's graphs with what is around them as a checkpoint's processors say."""
    found = read_processors(loaded)
    return replace(
        bundle,
        spec=replace(bundle.spec, observation_shapes=seen_by(loaded).observation_shapes),
        observations=found.observations,
        actions=found.actions,
        renamed=found.renamed,
        relative=found.relative,
        ranges={},
        goldens={},
    )


def check_path(loaded, bundle):
    """Walk lerobot's path through an episode, and the bundle where lerobot begins its second chunk."""
    spec, policy = loaded.staged.spec, loaded.policy
    n, task = spec.n_action_steps, TASK if bundle.prompt else ""
    bundle = around(loaded, bundle)
    seen = episode(loaded, 2 * n, n)
    policy.reset()
    wanted = []
    with torch.no_grad(), torch.random.fork_rng():
        for tick, one in enumerate(seen):
            torch.manual_seed(tick)
            ready = loaded.preprocess({**lerobots(one), "task": [task]})
            wanted.append(loaded.postprocess(policy.select_action(ready))[0].numpy())
    policy.reset()
    window = {
        key: np.stack([one[key] for one in seen[n - spec.first_action : n + 1]])[None] for key in seen[0]
    }
    runner = OrtPolicy(bundle, task=task)
    with torch.random.fork_rng():
        torch.manual_seed(n)
        chunk = runner.sample(runner.prepare(window), lambda shape: torch.randn(1, *shape).numpy())
    found = runner.restored(chunk[:, spec.first_action :], window)[0, :n]
    unit = bundle.actions.span / bundle.actions.gain
    assert np.abs((found - wanted[n:]) / unit).max() < TOLERANCE
    return found


def with_modes(loaded, mode, **changes):
    """A checkpoint all of whose features are normalised by one mode."""
    config = copy.deepcopy(loaded.policy.config)
    config.normalization_mapping = {kind.value: NormalizationMode(mode) for kind in FeatureType}
    return with_processors(loaded, config, statistics(config), **changes)


def with_processors(loaded, config, stats, **changes):
    """A checkpoint whose normalisers are made anew; other steps are its own."""
    norms = [
        step
        for pipeline in (loaded.preprocess, loaded.postprocess)
        for step in pipeline.steps
        if isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep)
    ]
    new = {}
    for step in norms:
        features = dict(step.features)
        new[id(step)] = type(step)(features, config.normalization_mapping, stats, **changes)
    before, behind = (
        with_steps(pipeline, [new.get(id(step), step) for step in pipeline.steps])
        for pipeline in (loaded.preprocess, loaded.postprocess)
    )
    return replace(loaded, preprocess=before, postprocess=behind)


@pytest.mark.shows("export")
@pytest.mark.parametrize("kind", ["diffusion", "multi_task_dit", "dp_transformer"])
def test_a_bundle_acts_as_lerobots_own_path_does(kind, exported):
    """G1 to G4 for bundles: states, environment state, two cameras, instructions, windows of observations.

    Exports of cogact and token_vla prove it of themselves, as every export does (`test_export`).
    """
    loaded, bundle = exported(kind)
    assert bundle.receipt["lerobot_error"] < TOLERANCE
    is_whole = kind == "multi_task_dit"
    check_path(whole(loaded) if is_whole else loaded, bundle)
    sizes = [shape[1:] for key, shape in bundle.spec.observation_shapes.items() if "image" in key]
    assert sizes == [(60, 80)] * 2 * is_whole


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["diffusion", "multi_task_dit"])
def test_every_mode_of_normalisation(kind, mode, exported):
    loaded, bundle = exported(kind)
    check_path(with_modes(loaded, mode), bundle)


@pytest.mark.parametrize("mode", MODES[:4])
def test_numbers_that_never_changed(mode, exported):
    """A constant dimension: std 0, both ends the same; lerobot divides by its eps."""
    loaded, bundle = exported("diffusion")
    config = copy.deepcopy(loaded.policy.config)
    config.normalization_mapping = {kind.value: NormalizationMode(mode) for kind in FeatureType}
    stats = statistics(config)
    for key in (STATE, "action"):
        for name, value in stats[key].items():
            value[1] = 0.0 if name == "std" else 3.0
    changed = with_processors(loaded, config, stats)
    constant = episode(changed, 1, 0)[0]
    constant[STATE][1] = 3.0
    window = {key: np.stack([value] * 2)[None] for key, value in constant.items()}
    batch = OrtPolicy(around(changed, bundle)).prepare(window)
    wanted = changed.preprocess(lerobots(constant))
    for key, value in batch.items():
        np.testing.assert_allclose(value[0, 0], wanted[key][0], atol=1e-5)
    chunk = np.random.default_rng(0).uniform(-1, 1, (1, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(
        read_processors(changed).actions.restore(chunk),
        changed.postprocess(torch.from_numpy(chunk)),
        atol=1e-5,
    )


def test_some_observations_only_and_another_eps(exported):
    loaded, bundle = exported("multi_task_dit")
    config = loaded.policy.config
    stats = statistics(config)
    check_path(with_processors(loaded, config, stats, eps=1e-2), bundle)
    changed = with_processors(loaded, config, stats)
    for step in changed.preprocess.steps:
        if isinstance(step, NormalizerProcessorStep):
            step.normalize_observation_keys = {STATE}
    picture = read_processors(changed).observations[FRONT]
    assert (picture.low == 0).all()
    assert (picture.span == 1).all()
    check_path(changed, bundle)


def test_names_of_the_dataset_are_the_bundles(exported):
    """A13: cameras that lerobot renames, two of them exchanged, keep the robot's names."""
    loaded, bundle = exported("multi_task_dit")
    changed = renaming(
        loaded,
        observation__images__top="observation__images__front",
        observation__images__front="observation__images__wrist",
        observation__joints="observation__state",
    )
    assert read_processors(changed).renamed == {
        "observation.images.top": FRONT,
        FRONT: WRIST,
        "observation.joints": STATE,
    }
    check_path(changed, bundle)


def test_relative_actions_are_offsets_to_the_newest_state(exported):
    """A12, G2: lerobot's pair of relative and absolute actions, some joints left absolute."""
    loaded, bundle = exported("diffusion")
    plain = check_path(loaded, bundle)
    names = ["shoulder.pos", "elbow.pos", "wrist.pos", "gripper.pos"]
    changed = relative(loaded, exclude_joints=["gripper"], action_names=names)
    assert read_processors(changed).relative.dimensions == (True, True, True, False)
    found = check_path(changed, bundle)
    assert np.abs(found - plain)[:, :3].min() > 0.5
    np.testing.assert_allclose(found[:, 3], plain[:, 3], atol=1e-5)


def test_names_and_relative_actions_are_in_the_folder(exported):
    loaded, made = exported("multi_task_dit")
    changed = whole(loaded)
    raw, bundle = raw_of(changed), Bundle.load(made.folder)
    assert bundle.renamed == {"observation.images.top": FRONT}
    assert bundle.relative.state == STATE
    assert bundle.relative.dimensions == (True,) * 4
    assert bundle.spec.action_range is None, "statistics of offsets say nothing of targets"
    assert bundle.receipt["lerobot_error"] < TOLERANCE
    policy = OrtPolicy(bundle, task=TASK)
    assert policy.golden_error < 1e-5
    with pytest.raises(ObservationMismatch, match="needs 'observation.images.top'"):
        policy.predict({key.replace("top", "front"): value for key, value in raw.items()}, [(1, 0)])
    moved = {key: value + np.float32(0.1) if key == STATE else value for key, value in raw.items()}
    before = {PREVIOUS: policy.predict(raw, [(1, 0)]), DELAY: np.zeros(1, np.int64)}
    there = policy.normalised(before[PREVIOUS], moved)
    back = policy.restored(there, moved)
    np.testing.assert_allclose(back, before[PREVIOUS], atol=1e-4)
    wanted = changed.preprocess({**lerobots({k: v[0, -1] for k, v in moved.items()}), "task": [TASK],
                                 "action": torch.from_numpy(before[PREVIOUS])})  # fmt: skip
    np.testing.assert_allclose(there, wanted["action"], atol=1e-4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda x: (x / 255).astype(np.float32), "is float32; pictures are uint8"),
        (lambda x: x / 255, "is float64; pictures are uint8"),
        (lambda x: x.astype(np.int64), "is int64; pictures are uint8"),
        (lambda x: np.moveaxis(x, -1, -3), "has shape"),
    ],
)
def test_pictures_of_another_kind_are_refused(exported, value, message):
    """A26: floats in [0, 1] would be divided by 255 again."""
    loaded, bundle = exported("multi_task_dit")
    key, raw = "observation.images.top", raw_of(whole(loaded))
    with pytest.raises(ObservationMismatch, match=message):
        OrtPolicy(bundle, task=TASK).predict({**raw, key: value(raw[key])}, [(1, 0)])


def selecting_twice_as_much(loaded):
    """A checkpoint whose `select_action` does something of its own."""
    policy = copy.copy(loaded.policy)
    policy.select_action = lambda batch: 2 * loaded.policy.select_action(batch)
    return replace(loaded, policy=policy)


def test_what_is_more_than_the_steps_say_is_found(exported):
    """A policy whose own `select_action` does something besides is no bundle (B1)."""
    loaded, bundle = exported("dp_transformer")
    data = CalibrationData({}, ((2, 0),))
    assert prove_processors(OrtPolicy(bundle), loaded, data) < TOLERANCE
    with pytest.raises(ParityError, match="differs from lerobot's own path by"):
        prove_processors(OrtPolicy(bundle), selecting_twice_as_much(loaded), data)


def copied(loaded):
    """A checkpoint whose processors and config may be damaged."""
    policy = copy.copy(loaded.policy)
    policy.config = copy.deepcopy(policy.config)
    before, behind = copy.deepcopy((loaded.preprocess, loaded.postprocess))
    return replace(loaded, policy=policy, preprocess=before, postprocess=behind)


def renamed_statistics(loaded):
    for pipeline in (loaded.preprocess, loaded.postprocess):
        for step in pipeline.steps:
            if isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep):
                step._tensor_stats = {f"so100.buffer.{k}": v for k, v in step._tensor_stats.items()}


def each(loaded, kind, change):
    for pipeline in (loaded.preprocess, loaded.postprocess):
        for step in pipeline.steps:
            if isinstance(step, kind):
                change(step)


def drop(name):
    return lambda loaded: each(loaded, NormalizerProcessorStep, lambda step: step._tensor_stats.pop(name))


def add_before(loaded, *steps):
    loaded.preprocess.steps = [*loaded.preprocess.steps, *steps]


def add_behind(loaded, *steps):
    loaded.postprocess.steps = [*loaded.postprocess.steps, *steps]


def norm_step(loaded):
    return next(step for step in loaded.preprocess.steps if isinstance(step, NormalizerProcessorStep))


REFUSED = {
    "A1-other-keys": (renamed_statistics, r"lack its .* \(they are of so100\.buffer\..*would pass as it is"),
    "A1-one-key": (drop(FRONT), f"'{FRONT}' is normalised by MEAN_STD, but the checkpoint's statistics lack"),
    "A2-none": (
        lambda loaded: each(
            loaded,
            NormalizerProcessorStep | UnnormalizerProcessorStep,
            lambda step: step._tensor_stats.clear(),
        ),
        r"\(they are of nothing\)",
    ),
    "A2-action": (
        lambda loaded: each(loaded, UnnormalizerProcessorStep, lambda step: step._tensor_stats.pop("action")),
        "'action' is normalised by MIN_MAX, but the checkpoint's statistics lack its min and max",
    ),
    "A5-size": (
        lambda loaded: each(
            loaded,
            NormalizerProcessorStep,
            lambda step: step._tensor_stats.update(
                {STATE: {name: torch.arange(6.0) + (name == "max") for name in ("min", "max")}}
            ),
        ),
        r"statistics of 'observation\.state' have the shape \(6,\), needed is \(5,\)",
    ),
    "pictures-pixel-by-pixel": (
        lambda loaded: each(
            loaded,
            NormalizerProcessorStep,
            lambda step: step._tensor_stats.update(
                {FRONT: {name: torch.ones(3, 64, 96) for name in ("mean", "std")}}
            ),
        ),
        r"have the shape \(3, 64, 96\), needed is \(3, 1, 1\)",
    ),
    "ends-exchanged": (
        lambda loaded: each(
            loaded,
            NormalizerProcessorStep,
            lambda step: step._tensor_stats[STATE].update(min=step._tensor_stats[STATE]["max"] + 1),
        ),
        r"statistics of 'observation\.state' have max not above min",
    ),
    "key-unknown": (
        lambda loaded: norm_step(loaded).features.pop(WRIST),
        f"normaliser knows .*, but not '{WRIST}', which would pass as it is",
    ),
    "twice": (
        lambda loaded: add_before(loaded, norm_step(loaded)),
        "'observation.images.front' is normalised 2 times",
    ),
    "normaliser-behind": (
        lambda loaded: add_behind(loaded, norm_step(loaded)),
        "processor step NormalizerProcessorStep is not one that can be exported",
    ),
    "crop": (
        lambda loaded: add_before(loaded, ImageCropResizeProcessorStep()),
        "processor step ImageCropResizeProcessorStep is not one that can be exported",
    ),
    "half-precision": (
        lambda loaded: add_before(loaded, DeviceProcessorStep(float_dtype="float16")),
        "DeviceProcessorStep makes numbers float16, a bundle computes in float32",
    ),
    "renamed-away": (
        lambda loaded: add_before(loaded, RenameObservationsProcessorStep({STATE: "observation.joints"})),
        "make 'observation.joints' of 'observation.state', but the policy reads",
    ),
    "picture-of-no-picture": (
        lambda loaded: loaded.policy.config.input_features.update(
            {FRONT: PolicyFeature(FeatureType.STATE, (3, 64, 96))}
        ),
        f"'{FRONT}' is the policy's '{FRONT}', of type STATE; a robot's pictures are called",
    ),
    "A12-half-a-pair": (
        lambda loaded: add_behind(
            loaded, AbsoluteActionsProcessorStep(enabled=True, relative_step=RelativeActionsProcessorStep())
        ),
        "relative actions need one enabled step before the policy and one behind it",
    ),
    "A12-wrong-place": (
        lambda loaded: (
            add_before(loaded, RelativeActionsProcessorStep(enabled=True)),
            add_behind(
                loaded,
                AbsoluteActionsProcessorStep(enabled=True, relative_step=RelativeActionsProcessorStep()),
            ),
        ),
        "RelativeActionsProcessorStep must come before the normaliser",
    ),
    "two-ways": (
        lambda loaded: each(
            loaded,
            UnnormalizerProcessorStep,
            lambda step: step._tensor_stats["action"].update(max=step._tensor_stats["action"]["max"] + 1),
        ),
        "actions are normalised by other statistics than they are brought back by",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_bundle_cannot_hold_is_refused_by_name_before_any_work(case, tmp_path):
    """Nothing becomes an identity because of a key's name (A1, A2, A5, A12)."""
    change, message = REFUSED[case]
    loaded = copied(once("diffusion"))
    change(loaded)
    asked = []
    data = CalibrationData({STATE: torch.zeros(1, 2, 5)}, ((2, 0),))  # not looked at
    with pytest.raises(UnsupportedPolicy, match=message):
        export(loaded, AccelerationPlan(loaded.fingerprint), data, tmp_path / "bundle", on_graph=asked.append)
    assert not asked
    assert not list(tmp_path.iterdir())


def test_padding_before_the_text_is_refused():
    loaded = copied(once("multi_task_dit"))
    each(loaded, TokenizerProcessorStep, lambda step: setattr(step, "padding_side", "left"))
    with pytest.raises(UnsupportedPolicy, match="needs padding_side='right' and padding='max_length' or"):
        prompts(loaded, [TASK])


def test_a_prompt_padded_to_the_longest_of_a_batch_is_padded_to_the_longest_there_may_be():
    loaded = copied(once("multi_task_dit"))
    whole, settings = prompts(loaded, [TASK])
    each(loaded, TokenizerProcessorStep, lambda step: setattr(step, "padding", "longest"))
    assert prompts(loaded, [TASK]) == (whole, settings)
    batch = Session(loaded, task="a").blank()
    data = CalibrationData(batch, ((1, 0),))
    assert batch[TOKENS].shape[1] < settings.length
    longer = padded(data, settings).batch
    assert longer[TOKENS].shape == longer[MASK].shape == (1, settings.length)
    assert longer[MASK].sum() == batch[MASK].sum()


def test_an_instruction_of_a_foreign_tokenizer_is_told_as_it_was_exported(exported):
    """Such a tokenizer may tell cases apart."""
    loaded, _ = exported("multi_task_dit")
    found, settings = prompts(loaded, ["Put it down", TASK])
    assert list(found) == ["Put it down", TASK]
    assert settings.length == 16
    assert padded(CalibrationData({STATE: torch.zeros(1, 2, 5)}, ((2, 0),)), settings).batch.keys() == {STATE}


@pytest.mark.parametrize("kind", ["multi_task_dit", "smolvla"])
def test_lerobots_tokenizer_travels_in_the_bundle(kind, tmp_path):
    """Of instructions that come later too, with what lerobot's steps write before and behind."""
    loaded = once(kind)
    texts, settings = prompts(loaded, [TASK])
    settings = with_tokenizer(loaded, settings, [TASK], tmp_path)
    bundle = SimpleNamespace(prompt=settings, prompts=texts, path=lambda name: tmp_path / name)
    tokenize = InstructionTokenizer(bundle)
    for text in (TASK, "Pick it", "go\n", " two  words "):
        data = padded(CalibrationData(Session(loaded, task=text).blank(), ((1, 0),)), settings).batch
        found = tokenize(text, {})
        assert (found[MASK] == data[MASK].numpy()).all()
        assert (found[TOKENS] == data[TOKENS].numpy())[found[MASK]].all()


def test_a_session_is_held_against_lerobots_own_path(exported):
    """What doctor asks of every bundled checkpoint."""
    loaded, _ = exported("multi_task_dit")
    assert path_error(loaded, TASK) < 1e-5
    assert path_error(selecting_twice_as_much(loaded), TASK) > 1e-3


def test_a_copy_of_a_checkpoint_with_statistics_under_other_keys_is_never_exported(tmp_path):
    """A1 as it was found: `vivace export` gave a manifest without a normaliser, and exit code 0."""
    import shutil

    from vivace.eval.cli import main
    from vivace.policies.checkpoint.find import ZOO

    copy_ = tmp_path / "push"
    shutil.copytree(ZOO / "push", copy_)
    for file in copy_.glob("policy_*normalizer_processor.safetensors"):
        save_file({f"so100.buffer.{key}": value for key, value in load_file(file).items()}, file)
    arguments = ["export", f"--policy.path={copy_}", "--env.task=push-v3", f"--output_dir={tmp_path / 'out'}"]
    assert main([*arguments, "--export.plan=false"]) == 2
    assert not (tmp_path / "out").exists()
