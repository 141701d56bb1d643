"""What nobody can run is refused in a line."""

import socket

import pytest

from vivace.eval.cli import main
from vivace.eval.scale.options import ScaleOptions, Shard
from vivace.policies.errors import BadSetting


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "scale.workers=0; 1 or more is needed"),
        ({"threads": 0}, "scale.threads=0; 1 or more is needed"),
        (
            {"shard": "9/8"},
            r"scale.shard=9/8; needed is i/n with i from 1 to n, such as 3/8, or 0/n to measure",
        ),
        ({"shard": "-1/8"}, r"scale.shard=-1/8; needed"),
        ({"shard": "0/0"}, r"scale.shard=0/0; needed"),
        ({"shard": "two"}, r"scale.shard=two; needed"),
        ({"workers": 2, "ray": "auto"}, "scale.workers and scale.ray are both given"),
        ({"ray": "ray://head:10001"}, "is Ray's client, which cannot hand results on"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(BadSetting, match=message):
        ScaleOptions(**options)


def test_a_share_is_read():
    assert ScaleOptions(shard="3/8").share == Shard(3, 8)
    assert ScaleOptions(shard="0/8").share == Shard(0, 8)
    assert ScaleOptions().share is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scale.workers=0"], "scale.workers=0; 1 or more is needed"),
        (["--scale.shard=9/8"], "scale.shard=9/8; needed is i/n"),
        (["--scale.workers=2", "--scale.ray=auto"], "are both given"),
        (
            ["--scale.ray=auto", "--policy.device=cuda"],
            "workers on Ray compute on CPUs, and policy.device=cuda",
        ),
        (["--scale.shard=1/8", "--output_dir=x", "--require=[plain.success>=0.5]"], "leave --require out"),
        (["--scale.shard=1/8"], "scale.shard=1/8 needs --output_dir, the same for all shares"),
    ],
)
def test_the_command_line_refuses_them(flags, message, capsys):
    assert main(["eval", *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_cluster_that_does_not_answer_is_named():
    pytest.importorskip("ray", reason="ray is not installed: pip install 'vivace[ray]'")
    from vivace.eval.scale.ray_crew import RayCrew

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        port = taken.getsockname()[1]
        with pytest.raises(BadSetting, match=rf"no Ray answers at scale.ray=127.0.0.1:{port} \(.*refused"):
            RayCrew(f"127.0.0.1:{port}", b"", 1, lambda unit: ())
    with pytest.raises(BadSetting, match="no Ray answers at scale.ray=nowhere"):
        RayCrew("nowhere", b"", 1, lambda unit: ())
