"""A deadline is too near when another step, as long as the longest so far, would miss it."""

from vivace.deploy.system.deadline import Deadline


def asked(at_s, *times):
    clock = iter(times)
    deadline = Deadline(at_s, lambda: next(clock))
    answers = [deadline.is_too_near() for _ in times[1:]]
    return answers, deadline.was_met_early


def test_steps_run_as_long_as_another_one_fits():
    assert asked(3.5, 0.0, 1.0, 2.0, 3.0) == ([False, False, True], True)
    assert asked(3.0, 0.0, 1.0, 2.0) == ([False, False], False)


def test_the_longest_step_counts():
    assert asked(4.0, 0.0, 2.0, 2.5) == ([False, True], True)


def test_without_a_deadline_nothing_is_too_near():
    assert asked(None, 0.0, 1e9) == ([False], False)
