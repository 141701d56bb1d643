"""The forward process of a diffusion policy: how actions are noised, and what its denoiser should say."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from vivace.policies.errors import BadSetting

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The forward process a denoiser was trained with; field names are diffusers'."""

    num_train_timesteps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    prediction_type: str = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0

    def __post_init__(self) -> None:
        """The denoiser must predict something known."""
        if self.prediction_type not in PREDICTION_TYPES:
            raise BadSetting(
                f"prediction_type={self.prediction_type!r}; choose one of {', '.join(PREDICTION_TYPES)}"
            )

    @classmethod
    def of(cls, config: Any) -> "NoiseSchedule":
        """Read the schedule from a lerobot policy config."""
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})

    @cached_property
    def _alphas_cumprod(self) -> Tensor:
        return self.scheduler(DDPMScheduler).alphas_cumprod

    def diffuse(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Clean samples (B, H, A) noised to timesteps t (B,): the forward process."""
        ab = self._alphas_cumprod.to(x)[t].view(-1, 1, 1)
        return ab.sqrt() * x + (1 - ab).sqrt() * noise

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a denoiser should say (B, H, A) about `diffuse(x, noise, t)`, by `prediction_type`."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x
        ab = self._alphas_cumprod.to(x)[t].view(-1, 1, 1)
        return ab.sqrt() * noise - (1 - ab).sqrt() * x

    def scheduler(self, kind: type, **extra: Any) -> Any:
        """Build a diffusers scheduler of this process; raises `BadSetting` if it has no such betas."""
        known = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if kind is DPMSolverMultistepScheduler:
            known = {key: value for key, value in known.items() if not key.startswith("clip_")}
        try:
            return kind(**known, **extra)
        except NotImplementedError as error:
            raise BadSetting(
                f"{kind.__name__} knows no beta_schedule={self.beta_schedule!r}; choose linear, "
                "scaled_linear or squaredcos_cap_v2"
            ) from error
