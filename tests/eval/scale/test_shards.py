"""Shares that do not belong together, are missing or twice are refused in a line."""

import json

import pytest

from vivace.eval.cli import main
from vivace.eval.scale.shard import FILE_NAME, join
from vivace.eval.simulation.episode import EpisodeResult
from vivace.policies.errors import BadSetting


def episode(seed):
    return EpisodeResult(
        seed=seed, success=seed % 2 == 0, steps=10, time_to_success_s=None, latencies_s=(0.1,),
        ticks={"chunk": 10, "stale": 0, "fallback": 0}, deadline_misses=0, interventions=0,
    )  # fmt: skip


def share(folder, number, of=3, seeds=(), **run):
    place = folder / f"shard-{number}-of-{of}"
    place.mkdir(parents=True, exist_ok=True)
    data = {
        "verb": "eval", "share": [number, of], "run": {"weights": "w", "seed": 7} | run,
        "jobs": {"plain": ["digest", 100, 6]}, "results": {"kind": "eval", "wall": {"total_s": 1.5}},
        "episodes": {"plain": [episode(seed).to_json() for seed in seeds]},
    }  # fmt: skip
    (place / FILE_NAME).write_text(json.dumps(data))
    return place


@pytest.fixture
def three(tmp_path):
    return [share(tmp_path / "big", i, seeds=range(98 + 2 * i, 100 + 2 * i)) for i in (1, 2, 3)]


def test_shares_are_joined_in_the_order_of_their_seeds(three):
    for places in ([three[0].parent], three, three[::-1]):
        joined = join(places)
        assert joined.episodes == {"plain": [episode(seed) for seed in range(100, 106)]}
        assert joined.results == {"kind": "eval", "wall": {"total_s": 4.5}, "shares": 3}
        assert joined.first == three[0]


def refused(places, message):
    with pytest.raises(BadSetting, match=message):
        join(places)


def test_what_does_not_belong_together_is_refused(three, tmp_path):
    refused(three[:2], r"of 3 shares 1 are missing: 3; run them with --scale.shard=i/3")
    refused([*three, three[1]], r"share 2/3 is there twice: .*shard-2-of-3 and .*shard-2-of-3; leave one out")
    refused(
        [*three, share(tmp_path / "x", 1, of=4)], "are shares of different runs: they differ in number of s"
    )
    refused([*three, share(tmp_path / "y", 1, seed=8)], "shares of different runs: they differ in seed")
    refused([tmp_path], "holds no finished share; needed is what --scale.shard=i/n wrote")
    share(three[0].parent, 2, seeds=(102,))
    refused(three, "no share holds episode 103 of plain; run its share again")
    (three[1] / FILE_NAME).write_text("[1]")
    refused(three, "is no share of a command's episodes, or another version's; run that share again")


def test_other_plans_or_latencies_are_refused(three):
    data = json.loads((three[2] / FILE_NAME).read_text())
    data["jobs"]["plain"][0] = "another"
    (three[2] / FILE_NAME).write_text(json.dumps(data))
    refused(three, "they differ in what was run under the name plain")


def test_the_command_says_so_in_a_line(three, capsys):
    assert main(["report", f"--merge={three[0]},{three[1]}", "--output_dir=out"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("vivace report: of 3 shares 1 are missing: 3;")
    assert main(["report", f"--merge={three[0]},{three[1]}"]) == 2
    assert "say by --output_dir where" in capsys.readouterr().err
    assert main(["report", f"--merge={three[0]}", "--table=eval"]) == 2
    assert "--merge reads shares and nothing else" in capsys.readouterr().err
