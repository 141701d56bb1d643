"""Where episodes are run: one group of flags, and nothing else changes."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vivace.policies.errors import BadSetting

if TYPE_CHECKING:
    from vivace.eval.options import CommonOptions


class Shard(NamedTuple):
    """A share of the episodes of a command."""

    number: int
    """From 1; 0 runs none, but measures the latencies that all shards meet."""
    of: int

    def __str__(self) -> str:
        """As one types it."""
        return f"{self.number}/{self.of}"

    @property
    def is_first(self) -> bool:
        """Whether what is done but once is done here."""
        return self.number == 1

    @property
    def folder(self) -> str:
        """Name of the folder, inside that of the results, which holds its own."""
        return f"shard-{self.number}-of-{self.of}"


@dataclass(kw_only=True)
class ScaleOptions:
    """Where episodes are run; their results are the same bit for bit wherever that is, apart from times."""

    workers: int | None = None
    """Processes of this computer that run episodes side by side; this process alone when not given."""
    ray: str = ""
    """Run them on a Ray cluster, a worker for every --scale.threads of its CPUs: auto (the one that runs on
    this computer, else one is begun here), or host:port."""
    shard: str = ""
    """i/n: run one of n shares of the episodes, numbered from 1, for Slurm and CI; 0/n measures the latencies
    that all shares meet. vivace report --merge joins them."""
    threads: int = 1
    """torch threads of a worker, a number of its own and never that of the cores, for it decides the last
    bits."""

    def __post_init__(self) -> None:
        """Refuse what nobody can run."""
        for name in ("workers", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadSetting(f"scale.{name}={value}; 1 or more is needed")
        if self.workers is not None and self.ray:
            raise BadSetting(
                "scale.workers and scale.ray are both given; processes are of this computer, or of a cluster"
            )
        if self.ray.startswith("ray://"):
            raise BadSetting(
                f"scale.ray={self.ray} is Ray's client, which cannot hand results on as they come; start "
                "vivace on a node of the cluster (ray job submit) with --scale.ray=auto, or give host:port"
            )
        _ = self.share

    def check(self, command: "CommonOptions") -> None:
        """Raise `BadSetting` for what a command asks that cannot be done where its episodes are run."""
        if self.share and command.output_dir is None:
            raise BadSetting(f"scale.shard={self.shard} needs --output_dir, the same for all shares")
        if self.share and command.require:
            raise BadSetting(
                f"scale.shard={self.shard}: whether {command.require[0]} holds is known once all are joined; "
                "leave --require out"
            )
        if self.ray and command.policy.device != "cpu":
            raise BadSetting(
                f"scale.ray={self.ray}: workers on Ray compute on CPUs, and policy.device="
                f"{command.policy.device} is asked for; take --scale.shard, a share for every GPU"
            )

    @property
    def is_here(self) -> bool:
        """Whether episodes are run in the command's own process."""
        return self.workers is None and not self.ray

    def threads_of_episodes(self, own: int) -> int:
        """Torch threads that episodes are computed with: of workers, or of the command's own process."""
        return own if self.is_here else self.threads

    @property
    def share(self) -> Shard | None:
        """The share that is asked for; None: all episodes.

        Raises:
            BadSetting: there is no such share.
        """
        if not self.shard:
            return None
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        shard = Shard(*map(int, found.groups())) if found else Shard(1, 0)
        if shard.number > shard.of or not shard.of:
            raise BadSetting(
                f"scale.shard={self.shard}; needed is i/n with i from 1 to n, such as 3/8, or 0/n to measure"
            )
        return shard
