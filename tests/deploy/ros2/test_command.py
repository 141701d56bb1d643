"""Twists and poses as commands, by mental arithmetic."""

import numpy as np
import pytest

from vivace.deploy.ros2.messages.command import Intent, PoseCommand, TwistCommand
from vivace.policies.spec import ActionKind

ABSOLUTE, DELTA, VELOCITY = ActionKind.ABSOLUTE, ActionKind.DELTA, ActionKind.VELOCITY


def sent_by(make, *actions):
    sent, rest = [], []
    command = make(lambda x: sent.append(x.tolist()), lambda x: rest.append(x.tolist()))
    for action in actions:
        none = np.empty((0, len(action)), np.float32)
        command(Intent(np.array(action, np.float32), none, None, 0.0, 0))
    return sent, rest


def test_a_twist_takes_velocities_and_displacements_a_period():
    layout, kinds = ("linear", "angular.z", "other"), (DELTA, DELTA, VELOCITY, VELOCITY, ABSOLUTE)
    sent, rest = sent_by(lambda *to: TwistCommand(layout, kinds, 0.5, *to), [1, 2, 3, 4, 5], [0, 0, 0, 0, 5])
    assert sent == [[2, 4, 3, 0, 0, 4], [0] * 6], "displacements of zero stand still"
    assert rest == [[5], [5]]


def test_a_twist_without_others_sends_nothing_else():
    assert sent_by(lambda *to: TwistCommand(("linear.x",), (VELOCITY,), 0.5, *to), [1])[1] == []


def test_a_pose_is_sent_and_held_where_the_numbers_are_no_rotation():
    layout = ("xyz", "quaternion_wxyz", "other")
    sent, rest = sent_by(
        lambda *to: PoseCommand(layout, (), *to),
        [9, 9, 9, 0, 0, 0, 0, 1],
        [1, 2, 3, 0, 0.9, 0, 0, 2],
        [9, 9, 9, 0, 0, 0, 0, 3],
    )
    assert sent == [pytest.approx([1, 2, 3, 1, 0, 0, 0])] * 2
    assert rest == [[1], [2], [3]]


def test_what_a_layout_leaves_out_is_fixed():
    fixed = (0.0, 0.0, 0.2, 1.0, 0.0, 0.0, 0.0)
    sent, _ = sent_by(lambda *to: PoseCommand(("y", "x"), fixed, *to), [1, 2])
    assert sent == [[2, 1, 0.2, 1, 0, 0, 0]]
