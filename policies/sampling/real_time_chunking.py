"""Real-time chunking: a new chunk continues the one that is being executed (RTC, arXiv 2506.07339).

While a chunk is computed, the robot executes d more actions of the chunk before. RTC treats those as given
and what follows them as a wish: at every denoising step the clean chunk A that the denoiser predicts is drawn
towards Y, what the chunk before means for the same ticks, with weights W (eq. 5)

    W_i = 1 for i < d,  c_i (e^{c_i} - 1) / (e - 1) for d <= i < E,  0 beyond,  c_i = (E - i) / (E - d + 1)

    A <- A + k J^T W (Y - A),    k = min((1 - tau) beta, (tau^2 + (1 - tau)^2) / tau)

where J is the derivative of A by x (eq. 2 to 4; k here is the paper's factor of the velocity times 1 - tau).
A diffusion process x = alpha a + sigma n is the flow x / (alpha + sigma) at tau = alpha / (alpha + sigma), so
the same correction serves every sampler; it is added to what the denoiser says, after caches and guidance.

Two forms of J: `identity`, which needs no backward pass (what lerobot 0.6 in effect computes, since it calls
the denoiser before it asks for gradients), and `exact`, the paper's, one backward pass a step.
Beta differs between them. With the identity and the paper's beta = 5 zoo/reach solved 7 of 25 episodes of
reach-moving at a latency of 0.1 s, with beta = 1 (k <= 1: no step is drawn past what it is drawn towards) 24,
without guidance 24, with the exact J and beta = 5 22. One task decided this default; on push-disturbed 5 and
1 solved the same, 5 with smaller jumps.
`inpaint` takes W_i in {0, 1} and k = 1 instead: the first d actions are those of the chunk before, exactly,
since they are put back into the finished chunk: the last stage of RK4 looks at x where it is clean already
and says nothing that could be corrected, and rounding is amplified where x holds little of the clean chunk.

Deviations: rows that the chunk before says nothing about weigh nothing (lerobot pads them with zeros, which
draws the chunk's end towards zero if the execution horizon is longer than what is left).
Works on numpy arrays and on tensors alike.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vivace.policies.errors import BadSetting
from vivace.policies.sampling.step_table import StepTable

NO_DENOISING = (
    "real-time chunking works on denoising steps, but policy {!r} has none of its own to correct; "
    "use mode async"
)

CUT_SHORT = (
    "real-time chunking continues what is left of the chunk before, but of policy {!r} the first actions "
    "alone are computed; leave dead_actions out of the plan, or use mode async"
)

METHODS = ("guidance", "inpaint")
JACOBIANS = ("identity", "exact")
SCHEDULES = ("exp", "linear", "ones", "zeros")


@dataclass(frozen=True, kw_only=True)
class RealTimeChunking:
    """How a chunk continues the one before."""

    method: str = "guidance"
    """guidance: drawn towards it, softly behind the delay; inpaint: the delay's actions exactly, no more."""
    jacobian: str = "identity"
    """identity, or exact: one backward pass a step; not in an exported policy."""
    schedule: str = "exp"
    """How weights fall behind the delay: exp, linear, ones, zeros; as lerobot's prefix_attention_schedule."""
    execution_horizon: int | None = None
    """Actions of the chunk before that count, as lerobot's; all that are left when None."""
    max_guidance_weight: float | None = None
    """beta, largest factor of the correction of a velocity; lerobot's default is 10. When None the paper's 5
    with the exact Jacobian, and 1 with the identity, see above."""

    def __post_init__(self) -> None:
        """Choices must be known, numbers in range."""
        if self.method == "freeze":
            raise BadSetting("rtc method='freeze' is called inpaint now; use method='inpaint'")
        for name, known in (("method", METHODS), ("jacobian", JACOBIANS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise BadSetting(f"rtc {name}={getattr(self, name)!r}; choose one of {', '.join(known)}")
        if not self.beta > 0 or (self.execution_horizon is not None and self.execution_horizon < 1):
            raise BadSetting(
                f"rtc max_guidance_weight={self.max_guidance_weight}, "
                f"execution_horizon={self.execution_horizon}; needed: above 0, and 1 or more"
            )

    @property
    def beta(self) -> float:
        """Largest factor of the correction of a velocity."""
        if self.max_guidance_weight is not None:
            return self.max_guidance_weight
        return 5.0 if self.jacobian == "exact" else 1.0

    def weights(self, n_known: int, delay: int, horizon: int) -> np.ndarray:
        """W (H,) of the actions of a chunk.

        Args:
            n_known: actions from the first one on that the chunk before says something about.
            delay: actions that will be executed before the chunk is there.
            horizon: H.
        """
        end = min(n_known, horizon)
        if self.execution_horizon is not None:
            end = min(end, self.execution_horizon)
        start = min(delay, end)
        i = np.arange(horizon)
        fall = np.clip((end - i) / (end - start + 1), 0.0, 1.0)
        shapes = {
            "exp": fall * np.expm1(fall) / (np.e - 1),
            "linear": fall,
            "ones": np.ones(horizon),
            "zeros": np.zeros(horizon),
        }
        soft = shapes["zeros" if self.method == "inpaint" else self.schedule]
        found: np.ndarray = np.where(i < start, 1.0, np.where(i < end, soft, 0.0)).astype(np.float32)
        return found

    def strength(self, table: StepTable) -> float:
        """Return k of one step."""
        if self.method == "inpaint":
            return 1.0
        tau = table.alpha / (table.alpha + table.sigma)
        largest = (1 - tau) * self.beta
        return min(largest, (tau**2 + (1 - tau) ** 2) / tau) if tau > 0 else largest


@dataclass(frozen=True)
class Continuation:
    """What one batch of chunks continues; arrays or tensors."""

    settings: RealTimeChunking
    actions: Any
    """Y, normalised (B, H, A); any finite value where W is 0."""
    weights: Any
    """W (B, H, 1)."""

    def error(self, table: StepTable, x: Any, out: Any) -> Any:
        """W (Y - A) (B, H, A), A the clean chunk that the denoiser's word `out` about `x` means."""
        return self.weights * (self.actions - (table.clean_x * x + table.clean_out * out))

    def correct(self, table: StepTable, out: Any, correction: Any) -> Any:
        """Return what the denoiser would have said, had it predicted A + k `correction`."""
        if not table.clean_out:  # x is clean already
            return out
        return out + self.settings.strength(table) / table.clean_out * correction

    def hold(self, x: Any) -> Any:
        """Return the finished chunk x (B, H, A) with what is frozen put back, bit for bit."""
        if self.settings.method != "inpaint":
            return x
        return self.weights * self.actions + (1 - self.weights) * x  # W is 0 or 1: nothing is rounded


def continuation(
    settings: RealTimeChunking, previous: np.ndarray, delay: np.ndarray, first_action: int, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """Place what the chunks before mean in the chunks to come: actions (B, H, A) with 0 elsewhere, and W.

    Args:
        settings: how weights fall.
        previous: for now and later (B, n, A), in any units, NaN where nothing is known.
        delay: of each row (B,), in ticks.
        first_action: index of the predicted action that belongs to now.
        horizon: H.
    """
    batch, n, action_dim = previous.shape
    n = min(n, horizon - first_action)
    is_known = np.isfinite(previous[:, :n]).all(-1)
    n_known = np.where(is_known.all(1), n, is_known.argmin(1))
    actions = np.zeros((batch, horizon, action_dim), np.float32)
    actions[:, first_action : first_action + n] = np.nan_to_num(previous[:, :n])
    weights = np.zeros((batch, horizon, 1), np.float32)
    for row in range(batch):
        span = horizon - first_action
        weights[row, first_action:, 0] = settings.weights(int(n_known[row]), int(delay[row]), span)
    return actions, weights
