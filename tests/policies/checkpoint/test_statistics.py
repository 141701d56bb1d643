"""A1, A2, A5, A7: what a checkpoint says is normalised is normalised, or the checkpoint is refused."""

import json
import shutil
from dataclasses import dataclass

import pytest
import torch
from lerobot.configs import NormalizationMode
from lerobot.lerobot_types import TransitionKey
from lerobot.policies.groot.processor_groot import GrootN17ActionDecodeStep
from lerobot.processor import (
    NormalizerProcessorStep,
    ProcessorStep,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.factory import make_policy_processor_pipelines
from lerobot_policies import saved

from vivace.policies.checkpoint.statistics import check_statistics
from vivace.policies.errors import NoStatistics, PolicyNotFound
from vivace.policies.load import load_policy
from vivace.policies.tiny.policies import tiny_dp_transformer

STATE, CAMERA = "observation.state", "observation.images.front"


def renamed(tensors, old, new):
    return {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in tensors.items()}


def changed(tensors, name, value):
    return tensors | ({name: value} if name in tensors else {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda t: {f"so100.buffer.{name}": tensor for name, tensor in t.items()},
            "no statistics of 'observation.state', so it would not be normalised .* rename "
            "'so100.buffer.observation.state' to 'observation.state'",
            id="A1 under the name of a dataset",
        ),
        pytest.param(
            lambda t: renamed(t, "action", "actions"),
            "no statistics of 'action', .* those there are of 'actions'",
            id="A1 actions only",
        ),
        pytest.param(
            lambda t: renamed(t, STATE, "observation_state"),
            "no statistics of 'observation.state'",
            id="A1 as a buffer",
        ),
        pytest.param(
            lambda t: {"none.min": torch.zeros(1)}, "dataset_stats=dataset.meta.stats", id="A2 none of it"
        ),
        pytest.param(
            lambda t: {name: tensor for name, tensor in t.items() if not name.endswith("max")},
            "has no 'max' of 'observation.state', which MIN_MAX needs; it has min",
            id="A2 half of them",
        ),
        pytest.param(
            lambda t: changed(t, "action.min", torch.zeros(4)) | changed(t, "action.max", torch.ones(4)),
            r"'max' of 'action' of shape \(4,\), but the feature has \(3,\): statistics of another dataset|"
            r"'min' of 'action' of shape \(4,\)",
            id="A5 of another size",
        ),
        pytest.param(
            lambda t: changed(t, "action.min", torch.zeros(1)),
            r"'min' of 'action' of shape \(1,\)",
            id="A5 one number for all",
        ),
        pytest.param(
            lambda t: changed(t, f"{STATE}.max", torch.full((5,), -3.0)),
            "'max' of 'observation.state' below what it can be",
            id="A5 upside down",
        ),
        pytest.param(
            lambda t: changed(t, "action.max", torch.full((3,), 10.0)),
            "no number of 'action' ever changes",
            id="A5 nothing ever moved",
        ),
        pytest.param(
            lambda t: changed(t, "action.max", torch.full((3,), torch.inf)),
            "'action.max' holds NaN or infinity",
            id="A5 not finite",
        ),
    ],
)
def test_statistics_that_do_not_normalise_are_refused(copy, restate, change, message):
    restate(copy, change)
    with pytest.raises(PolicyNotFound, match=message) as refusal:
        load_policy(copy)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda t: {f"so100.buffer.{name}": tensor for name, tensor in t.items()},
            "no statistics of 'observation.state', so it would not be normalised .* rename "
            "'so100.buffer.observation.state' to 'observation.state'",
            id="A1 under the name of a dataset",
        ),
        pytest.param(
            lambda t: renamed(t, "action", "actions"), "no statistics of 'action'", id="A1 actions only"
        ),
        pytest.param(lambda t: {"none.min": torch.zeros(1)}, "those there are of 'none'", id="A2 none of it"),
        pytest.param(
            lambda t: {name: tensor for name, tensor in t.items() if not name.endswith("max")},
            "has no 'max' of 'observation.state'",
            id="A2 half of them",
        ),
        pytest.param(
            lambda t: changed(t, "action.min", torch.zeros(3)),
            r"'min' of 'action' of shape \(3,\), but the feature has \(4,\)",
            id="A5 of another size",
        ),
    ],
)
def test_steps_that_normalise_in_their_own_way_are_held_too(tmp_path, restate, change, message):
    """A1, A2, A5: groot's config says IDENTITY, its own steps pass on what has no min and max."""
    folder = shutil.copytree(saved("groot"), tmp_path / "policy")
    restate(folder, change)
    with pytest.raises(PolicyNotFound, match=message) as refusal:
        load_policy(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("groups", "found"), [(None, 0), ({"arm": 2}, 2), ({"arm": 2, "hand": 1}, 3), ({"arm": 2, "arms": 1}, 2)]
)
def test_actions_that_are_normalised_in_groups(tmp_path, groups, found):
    """A2, A5: groot's decoding by the statistics of its base leaves out, in silence, what has none."""
    config = tiny_dp_transformer().config
    config.normalization_mapping = dict.fromkeys(config.normalization_mapping, NormalizationMode.IDENTITY)
    statistics = groups and {
        "action": {key: {"min": [[0.0] * n] * 4, "max": [[1.0] * n] * 4} for key, n in groups.items()}
    }
    meant = groups and {"action": {"modality_keys": ["arm", "hand"], "action_configs": []}}
    decode = GrootN17ActionDecodeStep(env_action_dim=3, raw_stats=statistics, modality_config=meant)
    both = make_policy_processor_pipelines([], [decode])
    if found == 3:
        check_statistics(tmp_path, config, *both)
        return
    with pytest.raises(PolicyNotFound, match=f"has statistics of {found} numbers in its groups of 'action'"):
        check_statistics(tmp_path, config, *both)


def test_what_lerobot_runs_rightly_loads(copy, restate):
    restate(copy, lambda t: changed(t, "action.max", torch.tensor([10.0, 30.0, 30.0])))
    assert load_policy(copy).postprocess(torch.ones(1, 3))[0].tolist() == pytest.approx([10, 30, 30])


def test_no_statistics_at_all(copy):
    """A2: lerobot writes no state file then."""
    for file in copy.glob("policy_*.json"):
        pipeline = json.loads(file.read_text())
        for step in pipeline["steps"]:
            step.pop("state_file", None)
        file.write_text(json.dumps(pipeline))
    with pytest.raises(
        PolicyNotFound, match="holds no statistics of observation.state, action, .* save the processors again"
    ):
        load_policy(copy)


def test_statistics_of_several_datasets_are_nobodys(copy, restate):
    """A1, A2: smolvla's base, as migrated, holds those of what it was trained on under several names."""
    sets = ("so100.buffer", "so100-red.buffer")
    restate(copy, lambda t: {f"{name}.{key}": tensor.clone() for name in sets for key, tensor in t.items()})
    with pytest.raises(NoStatistics, match="a base to be trained, it seems"):
        load_policy(copy)
    lent = {STATE: {"min": [-3.0] * 5, "max": [3.0] * 5}, "action": {"min": [0.0] * 3, "max": [1.0] * 3}}
    loaded = load_policy(copy, statistics=lent)
    assert loaded.is_base
    assert loaded.postprocess(torch.ones(1, 3)).tolist() == [[1.0] * 3]
    assert loaded.preprocess({STATE: torch.full((5,), 3.0)})[STATE].tolist() == [[1.0] * 5]


@pytest.mark.parametrize("name", ["policy_preprocessor", "policy_postprocessor"])
def test_no_normaliser_at_all(copy, name):
    file = copy / f"{name}.json"
    pipeline = json.loads(file.read_text())
    pipeline["steps"] = [step for step in pipeline["steps"] if "normalizer" not in step["registry_name"]]
    file.write_text(json.dumps(pipeline))
    with pytest.raises(PolicyNotFound, match=f"{name}.json has no step that normalises '.*MIN_MAX"):
        load_policy(copy)


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_pictures_come_in_0_to_1(seeing, tmp_path, restate, scale):
    """A7: statistics of pictures in [0, 255] make all pictures look alike."""
    folder = shutil.copytree(seeing, tmp_path / "policy")
    restate(folder, lambda t: {n: v * (scale if n.startswith(CAMERA) else 1) for n, v in t.items()})
    if scale == 1:
        assert load_policy(folder)
        return
    with pytest.raises(PolicyNotFound, match="up to 127.5, those of pictures .* divide its mean"):
        load_policy(folder)


@dataclass
class Rescaling(ProcessorStep):
    """Somebody's step that multiplies pictures."""

    times: float = 255.0

    def __call__(self, transition):
        seen = transition[TransitionKey.OBSERVATION]
        pictures = {key: value * self.times for key, value in seen.items() if "images" in key}
        return {**transition, TransitionKey.OBSERVATION: {**seen, **pictures}}

    def transform_features(self, features):
        return features


@dataclass
class Failing(Rescaling):
    """One that needs what is only there on a robot."""

    def __call__(self, transition):
        raise KeyError("observation.tactile")


@pytest.mark.parametrize(
    ("step", "scale", "message"),
    [
        (Rescaling(255.0), 255.0, None),
        (Rescaling(1.0), 1.0, None),
        (
            Rescaling(1.0),
            255.0,
            r"up to 127.5, .* in \[0, 255\], but pictures come in \[0, 1\]",
        ),
        (Rescaling(255.0), 1.0, r"up to 0.5, but the steps before let pictures come in \[0, 255\]"),
        (Failing(), 255.0, None),
    ],
)
def test_a_step_of_somebody_elses_says_itself_how_it_scales_pictures(tmp_path, step, scale, message):
    """A7: it is shown a white picture; statistics have to be of what it makes of it."""
    config = tiny_dp_transformer(images=True).config
    stats = STATS | {CAMERA: {"mean": scale * torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.2)}}
    both = pipelines(config, stats=stats, before=[step])
    if message is None:
        check_statistics(tmp_path, config, *both)
        return
    with pytest.raises(PolicyNotFound, match=message):
        check_statistics(tmp_path, config, *both)


STATS = {
    STATE: {"min": torch.full((5,), -2.0), "max": torch.full((5,), 2.0)},
    "action": {"min": torch.zeros(3), "max": torch.ones(3)},
}


def pipelines(config, *, stats=STATS, before=(), after=(), **changes):
    """Pipelines with a normaliser between other steps."""
    both = {**config.input_features, **config.output_features}
    norm_map = config.normalization_mapping
    normalize = NormalizerProcessorStep(features=both, norm_map=norm_map, stats=stats, **changes)
    unnormalize = UnnormalizerProcessorStep(features=config.output_features, norm_map=norm_map, stats=stats)
    return make_policy_processor_pipelines([*before, normalize, *after], [unnormalize])


def test_a_feature_is_followed_through_renamings(tmp_path):
    """A1, A13: the dataset's name before a renaming step, the policy's after it."""
    config = tiny_dp_transformer().config
    rename = RenameObservationsProcessorStep(rename_map={"observation.joints": STATE})
    check_statistics(tmp_path, config, *pipelines(config, before=[rename]))
    with pytest.raises(PolicyNotFound, match="has no step that normalises 'observation.state'"):
        check_statistics(tmp_path, config, *pipelines(config, after=[rename]))


def test_a_feature_that_a_step_leaves_out_is_not_normalised(tmp_path):
    config = tiny_dp_transformer().config
    with pytest.raises(PolicyNotFound, match="has no step that normalises 'observation.state'"):
        check_statistics(tmp_path, config, *pipelines(config, normalize_observation_keys={"none"}))


@pytest.mark.parametrize(
    ("mode", "needed"),
    [
        (NormalizationMode.MEAN_STD, {"mean": torch.zeros(3), "std": torch.ones(3)}),
        (NormalizationMode.QUANTILES, {"q01": torch.zeros(3), "q99": torch.ones(3)}),
        (NormalizationMode.QUANTILE10, {"q10": torch.zeros(3), "q90": torch.ones(3)}),
    ],
)
def test_every_mode_needs_its_own(tmp_path, mode, needed):
    config = tiny_dp_transformer().config
    config.normalization_mapping = config.normalization_mapping | {"ACTION": mode}
    with pytest.raises(PolicyNotFound, match=f"of 'action', which {mode.value} needs; it has max, min"):
        check_statistics(tmp_path, config, *pipelines(config))
    check_statistics(tmp_path, config, *pipelines(config, stats=STATS | {"action": needed}))


def test_what_is_not_normalised_needs_no_statistics(tmp_path):
    config = tiny_dp_transformer().config
    config.normalization_mapping = dict.fromkeys(config.normalization_mapping, NormalizationMode.IDENTITY)
    check_statistics(tmp_path, config, *pipelines(config, stats={}))
