"""Latency models: pure functions of (seed, request), traces from files, profiles, refusals."""

import json

import numpy as np
import pytest

from vivace.eval.simulation.latency_model import (
    BurstyLatency,
    ConstantLatency,
    LatencyModel,
    MeasuredLatency,
    NoLatency,
    ProfileLatency,
    TraceLatency,
)
from vivace.policies.errors import BadSetting

TIMES = (0.1, 0.25, 0.3, 0.05, 0.2)


@pytest.fixture
def trace_file(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(TIMES))
    return str(path)


def read(path, text, **options):
    path.write_text(text)
    return TraceLatency(path=str(path), **options).samples_s


@pytest.mark.parametrize("kind", ["none", "constant", "measured", "trace", "profile"])
def test_every_kind_is_a_pure_function_of_seed_and_request(kind, trace_file):
    options = {"measured": {"samples_s": TIMES}, "trace": {"path": trace_file}}.get(kind, {})
    first, second = (LatencyModel.get_choice_class(kind)(**options) for _ in range(2))
    places = [(seed, request) for seed in (0, 100_003) for request in range(20)]
    forward = [first.latency_s(*place) for place in places]
    np.random.default_rng(0).random(5)
    backward = [second.latency_s(*place) for place in reversed(places)]
    assert forward == backward[::-1] == [first.latency_s(*place) for place in places]
    assert all(0 <= latency_s < np.inf for latency_s in forward)
    if kind in ("measured", "trace", "profile"):
        assert len(set(forward)) > 3
        assert forward[:20] != forward[20:]  # another seed, other latencies


def test_none_and_constant():
    assert NoLatency().latency_s(3, 4) == 0
    assert ConstantLatency(seconds=0.3).latency_s(3, 4) == 0.3


def test_measured_draws_each_sample_equally_often():
    model = MeasuredLatency(samples_s=TIMES, scale=2.0)
    draws = [model.latency_s(seed, request) for seed in range(40) for request in range(50)]
    values, counts = np.unique(draws, return_counts=True)
    assert values.tolist() == sorted(2 * t for t in TIMES)
    assert np.all(np.abs(counts - 400) < 100)  # more than 5 standard deviations of 18


def test_chunks_that_follow_none_have_latencies_of_their_own_where_they_were_measured():
    plan = MeasuredLatency(scale=2.0).for_run("warm", (0.1,), (0.4,))
    assert (plan.latency_s(0, 0), plan.first.latency_s(0, 0)) == (0.2, 0.8)
    assert plan.first.first is not plan, "and stay what they are"
    assert plan.first.first.latency_s(0, 0) == 0.8
    alike = MeasuredLatency().for_run("plain", (0.1,))
    given = MeasuredLatency(samples_s=(0.3,)).for_run("warm", (0.1,), (0.4,))
    for model in (alike, given, ConstantLatency(), NoLatency()):
        assert model.first is model


def test_a_trace_is_replayed_in_its_order_as_a_ring(trace_file):
    model, begins = TraceLatency(path=trace_file, scale=2.0), set()
    for seed in range(30):
        episode = [model.latency_s(seed, request) / 2 for request in range(12)]
        first = TIMES.index(episode[0])
        assert episode == [TIMES[(first + i) % 5] for i in range(12)]
        begins.add(first)
    assert begins == {0, 1, 2, 3, 4}


def test_a_trace_is_read_from_json_csv_and_text(tmp_path):
    path = tmp_path / "trace"
    assert read(path, "[0.1, 0.2]") == (0.1, 0.2)
    assert read(path, '\n{"latency_s": [0.1, 2], "other": [1]}') == (0.1, 2.0)
    assert read(path, '{"slow": [3]}', column="slow") == (3.0,)
    assert read(path, "tick, latency_s\n0,0.1\n\n1, 0.2\n") == (0.1, 0.2)
    assert read(path, "a,b\n5,6\n7,8\n", column="a") == (5.0, 7.0)
    assert read(path, "0.1\n2e-1\n\n") == (0.1, 0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[]", "is empty"),
        ("latency_s\n", "is empty"),
        ("[0.1, -0.2]", "holds -0.2; finite seconds, 0 or more"),
        ("[NaN]", "holds nan"),
        ("inf\n", "holds inf"),
        ("[0.1", "cannot be read"),
        ("0.1\nfast\n", "cannot be read"),
        ('["a"]', "cannot be read"),
        ("[[0.1]]", "cannot be read"),
        ('{"latency_s": 0.1}', "cannot be read"),
        ("tick,latency_s\n0,0.1\n1\n", "cannot be read"),
        ('{"p50": [1], "a": [2]}', r"has \['a', 'p50'\], not 'latency_s'; name a column"),
        ("tick,p50\n0,0.1\n", r"has \['tick', 'p50'\], not 'latency_s'"),
    ],
)
def test_bad_traces_are_refused(tmp_path, text, message):
    with pytest.raises(BadSetting, match=message):
        read(tmp_path / "trace", text)


def test_missing_and_binary_traces_are_refused(tmp_path):
    for path in ("", str(tmp_path), str(tmp_path / "nowhere.csv")):
        with pytest.raises(BadSetting, match="no latency trace at"):
            TraceLatency(path=path)
    (tmp_path / "photo").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(BadSetting, match="cannot be read"):
        TraceLatency(path=str(tmp_path / "photo"))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_profile_has_the_median_and_p99_asked_for(scale):
    model = ProfileLatency(p50_s=0.1, p99_s=0.3, scale=scale)
    draws = [model.latency_s(seed, request) for seed in range(100) for request in range(200)]
    assert np.percentile(draws, 50) == pytest.approx(0.1 * scale, rel=0.03)
    assert np.percentile(draws, 99) == pytest.approx(0.3 * scale, rel=0.08)


def test_a_profile_without_spread_is_constant():
    assert ProfileLatency(p50_s=0.2, p99_s=0.2).latency_s(1, 2) == 0.2


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_bad_times_are_refused(bad):
    with pytest.raises(BadSetting, match="constant latency holds"):
        ConstantLatency(seconds=bad)
    with pytest.raises(BadSetting, match="measured latency holds"):
        MeasuredLatency(samples_s=(0.1, bad))
    with pytest.raises(BadSetting, match="latency profile holds"):
        ProfileLatency(p50_s=0.1, p99_s=bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_scales_are_refused(bad, trace_file):
    for kind, options in ((ProfileLatency, {}), (MeasuredLatency, {}), (TraceLatency, {"path": trace_file})):
        with pytest.raises(BadSetting, match="latency scale is"):
            kind(scale=bad, **options)


def test_profiles_out_of_order_and_measurements_without_samples_are_refused():
    with pytest.raises(BadSetting, match="needed: 0 < p50 <= p99"):
        ProfileLatency(p50_s=0.2, p99_s=0.1)
    with pytest.raises(BadSetting, match="needed: 0 < p50 <= p99"):
        ProfileLatency(p50_s=0.0, p99_s=0.1)
    with pytest.raises(BadSetting, match="has no samples; measure the plan first"):
        MeasuredLatency().latency_s(0, 0)


def test_busy_times_come_and_go_whatever_is_asked_for():
    model = BurstyLatency(samples_s=(0.1,), quiet_s=2.0, busy_s=1.0, factor=3.0)
    times = np.arange(0, 30, 0.05)
    busy = np.array([[model.is_busy(seed, time_s) for time_s in times] for seed in range(60)])
    assert busy.mean() == pytest.approx(1 / 3, abs=0.04)
    lengths = 1 / np.abs(np.diff(busy.astype(int), axis=1)).mean() * 0.05
    assert lengths == pytest.approx(1.5, rel=0.15)  # mean of quiet and busy times
    for time_s, is_busy in zip(times, busy[7], strict=True):
        assert model.latency_s(7, int(20 * time_s), time_s) == pytest.approx(0.3 if is_busy else 0.1)


@pytest.mark.parametrize("options", [{"quiet_s": 0.0}, {"busy_s": float("inf")}, {"factor": 0.5}])
def test_bad_bursts_are_refused(options):
    with pytest.raises(BadSetting, match="bursty latency has .* needed: seconds above 0"):
        BurstyLatency(**options)
