"""The smallest bundle: a miniature policy that sees five joints, under two DDIM steps."""

import numpy as np

from vivace.accel.apply import calibrate
from vivace.accel.technique import CalibrationData
from vivace.deploy.export.export import export
from vivace.eval.training.fit import save
from vivace.eval.training.recipe import statistics
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.load import load_policy
from vivace.policies.session import Session
from vivace.policies.tiny.policies import tiny_dp_transformer

FAST = [("step_schedule", {"sampler": "ddim", "n_steps": 2}), ("hoist", {})]


def export_tiny(base, kinds=(), **changes):
    """Export a miniature whose three actions mean `kinds`; returns the bundle's folder."""
    policy = tiny_dp_transformer(**{"control_hz": 20.0, "horizon": 16, "n_action_steps": 12, **changes})
    random, stats = np.random.default_rng(0), {}
    for key, feature in {**policy.config.input_features, **policy.config.output_features}.items():
        stats[key] = statistics(random.uniform(-1, 1, (50, *feature.shape)).astype(np.float32))
    save(policy, *make_dp_transformer_pre_post_processors(policy.config, stats), base / "policy")
    loaded = load_policy(base / "policy", action_kinds=kinds)
    seen = Session(loaded).prepare({"observation.state": np.zeros((1, 2, 5), np.float32)})
    plan = calibrate(loaded.staged, loaded.fingerprint, CalibrationData(seen, ((1, 0),)), FAST)
    export(loaded, plan, CalibrationData(seen, ((2, 0),)), base / "bundle")
    return base / "bundle"
