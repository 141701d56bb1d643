"""`vivace serve`: lerobot's policy server, for its robot clients, with accelerated policies."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from vivace.deploy.lerobot.server import LOOPBACK, serve
from vivace.eval.terminal import console


@dataclass(kw_only=True)
class ServeCommand:
    """Serve policies to lerobot's robot clients, which name the checkpoint, as with lerobot's own server.

    What comes over its wire is unpickled: whoever reaches the port can run code on this computer. So it
    listens on this computer alone unless --host says otherwise; let nobody else in, with a tunnel such as
    ssh -L 8080:localhost:8080, or a network of your own.

    Example: vivace serve --port=8080
    Then: python -m lerobot.async_inference.robot_client --policy_type=vivace
    --pretrained_name_or_path=OUT --server_address=127.0.0.1:8080 --robot.type=…
    """

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets everybody in who can reach this computer."""
    port: int = 8080
    """Port to listen on."""
    fps: int = 30
    """Rate of the robot's control loop [Hz], for the times that actions are stamped with."""
    inference_latency: float = 0.0
    """Least time that a chunk takes [s]; lerobot's own server has 1/30 s, under which nothing gets faster."""
    obs_queue_timeout: float = 2.0
    """Longest wait for an observation [s]."""


def run(command: ServeCommand) -> tuple[dict[str, Any], bool]:
    """Serve until it is interrupted."""
    told = f"serving at {command.host}:{command.port}; what comes over the wire is unpickled: "
    if command.host in LOOPBACK:
        console.print(f"{told}this computer alone is listened to", highlight=False)
    else:
        console.print(f"{told}whoever reaches this port can run code here", style="red", highlight=False)
    with suppress(KeyboardInterrupt):
        serve(**asdict(command))
    return asdict(command), True
