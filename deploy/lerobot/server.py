"""lerobot's policy server for its robot clients, with our types and without its floor under the latency.

lerobot 0.6.1 lets a chunk wait until `inference_latency` has passed since it was asked for, 1/30 s by
default, and serves eight types only. Here neither holds; the rest is lerobot's own server.
"""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from vivace.policies.checkpoint.config import ACCELERATED
from vivace.policies.errors import BadSetting, in_one_line
from vivace.policies.load import ADAPTERS
from vivace.policies.plugins import register_plugins

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
"""Hosts that nobody outside of this computer reaches."""


def allow(supported: list[str], types: Sequence[str]) -> None:
    """Let a server's list of policy types have more."""
    supported.extend(kind for kind in types if kind not in supported)


def serve(**settings: Any) -> None:
    """Serve until the process is ended.

    Args:
        **settings: fields of lerobot's `PolicyServerConfig`.

    Raises:
        BadSetting: a setting is out of range, the port cannot be had, or gRPC is not installed.
    """
    try:
        from lerobot.async_inference import constants, policy_server
        from lerobot.async_inference.configs import PolicyServerConfig
    except ModuleNotFoundError as error:
        raise BadSetting(
            f"lerobot's policy server needs what is not installed ({in_one_line(error)}); pip install "
            f"'lerobot[async]=={version('lerobot')}'"
        ) from error
    from vivace.deploy.lerobot import plugin

    try:
        config = PolicyServerConfig(**settings)
        plugin.install()  # what is refused before it leaves lerobot as it was
        register_plugins()
        allow(constants.SUPPORTED_POLICIES, (ACCELERATED, *ADAPTERS.names()))
        policy_server.serve(config)
    except (ValueError, RuntimeError) as error:  # of lerobot's check, and of gRPC where a port is taken
        raise BadSetting(f"the server cannot serve at {settings}: {in_one_line(error)}") from error
