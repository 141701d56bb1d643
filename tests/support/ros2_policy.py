"""The policy that tests of the ROS 2 node without ROS drive: two absolute targets, seen as two joints."""

from vivace.policies.spec import STATE, ActionKind, ActionRange, PolicySpec

NAMES = ("a", "b")


def wide(size):
    """What the training data did, so far apart that it limits nothing."""
    limits = {"low": (-1e6,) * size, "high": (1e6,) * size, "step": (1e6,) * size}
    return ActionRange(**limits, bounds_from="the data", step_from="the data")


SPEC = PolicySpec(
    type="any",
    action_dim=2,
    horizon=6,
    n_obs_steps=1,
    n_action_steps=4,
    observation_shapes={STATE: (2,)},
    action_kinds=(ActionKind.ABSOLUTE,) * 2,
    blocks=(),
    action_range=wide(2),
)
