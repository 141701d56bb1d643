"""The choice that decides is told to, and one that changes nothing is not."""

import numpy as np

from vivace.eval.race.importance import FEWEST, importance


def rows(n: int) -> list[dict[str, object]]:
    """Steps decide the work, a cache the error; a third technique neither."""
    random, found = np.random.default_rng(0), []
    for _ in range(n):
        steps, is_cached, is_idle = int(random.integers(1, 17)), random.random() < 0.5, random.random() < 0.5
        requests: list[object] = [["steps", {"n": steps, "kind": "one"}]]
        requests += [["cache", {}]] if is_cached else []
        requests += [["idle", {}]] if is_idle else []
        error = 0.1 * is_cached + 0.001 * random.random()
        found.append({"candidate": {"requests": requests}, "flops": 1000 * steps, "action_error": error})
    return found


def test_what_decides_has_the_largest_share() -> None:
    found = importance(rows(200))
    assert next(iter(found["work"])) == "steps.n"
    assert next(iter(found["action error"])) == "cache"
    assert found["work"]["steps.n"] > 0.8
    assert found["action error"]["cache"] > 0.8
    assert found["work"]["idle"] < 0.1
    assert "steps.kind" not in found["work"]  # all are alike
    assert abs(sum(found["work"].values()) - 1) < 0.01


def test_of_a_few_candidates_nothing_is_said() -> None:
    assert importance(rows(FEWEST - 1)) == {}
    unknown = [row | {"action_error": None} for row in rows(100)]
    assert importance(unknown) == {}
