"""The policy type `vivace`: lerobot's own object of another type, whose chunks are made under a plan."""

from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from vivace.accel.apply import accelerate
from vivace.accel.plan import AccelerationPlan
from vivace.deploy.lerobot.checked import as_configured
from vivace.deploy.lerobot.chunks import Chunks, drops_in
from vivace.deploy.lerobot.configuration_vivace import VivaceConfig
from vivace.policies.checkpoint.config import ACCELERATED
from vivace.policies.errors import PolicyNotFound, UnsupportedPolicy
from vivace.policies.execution import Execution, check_continuing
from vivace.policies.load import LoadedPolicy, load_policy, stage
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.session import check_begins

_TRAIN_ITS_BASE = (
    "a policy of type 'vivace' is for running, not for training: its plan holds for its weights; train the "
    "checkpoint it was made of, then vivace accelerate CKPT OUT again"
)


class VivacePolicy(PreTrainedPolicy):
    """Another policy under a plan: its queues, its arguments and what it returns are its own.

    Args:
        config: with the base's nested.
        loaded: the base, as our own loader gives it.
        plan: made for it.

    Raises:
        UnsupportedPolicy: it is not made of a checkpoint, or it has no parts.
    """

    config_class = VivaceConfig
    name = ACCELERATED

    def __init__(
        self,
        config: VivaceConfig,
        loaded: LoadedPolicy | None = None,
        plan: AccelerationPlan | None = None,
        **kwargs: Any,
    ):
        super().__init__(config)
        if loaded is None or plan is None:
            raise UnsupportedPolicy(
                "a policy of type 'vivace' is not built from nothing: vivace accelerate CKPT OUT makes one "
                "of a checkpoint, then give --policy.path=OUT"
            )
        if not drops_in(loaded.staged):
            raise UnsupportedPolicy(
                f"policy {loaded.policy.config.type!r} does not come apart, so it has no plan; run its own "
                "checkpoint"
            )
        self.config: VivaceConfig = config
        self.base = loaded.policy
        self._preprocess = loaded.preprocess
        self.plan = plan
        form: Any = loaded.staged
        self.chunks = Chunks(self.base, form.chunk_method, self._execution)

    def _execution(self, base: Any) -> Execution:
        execution = accelerate(stage(base), as_configured(self.plan, base))
        check_begins(execution, self._preprocess)
        return execution

    @classmethod
    def from_pretrained(  # type: ignore[override]  # lerobot's own is of any policy
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> "VivacePolicy":
        """Load a checkpoint that `vivace accelerate` wrote.

        Args:
            pretrained_name_or_path: its folder, or its name on the Hub.
            config: as lerobot's command line has changed it; as the checkpoint has it when not given.
            revision: of the Hub.
            **kwargs: lerobot's others, about downloads and the training's data, have no meaning here.

        Raises:
            PolicyNotFound: there is none, or it is of another type, or damaged.
            PlanMismatch: its plan is missing, or is another policy's.
            UnsupportedPolicy: its base does not come apart.
        """
        place = str(pretrained_name_or_path)
        if config is None:
            config = PreTrainedConfig.from_pretrained(place, revision=revision)
        if not isinstance(config, VivaceConfig):
            raise PolicyNotFound(f"{place} is of type {config.type!r}, needed is {ACCELERATED!r}")
        named = f"{place}@{revision}" if revision and not Path(place).exists() else place
        loaded = load_policy(named, config=config.built)
        plan = AccelerationPlan.load(loaded.path)
        plan.check(loaded.fingerprint)
        return cls(config, loaded, plan)

    def reset(self) -> None:
        """Forget queued observations and actions, and the chunk before."""
        self.chunks.forget()
        self.base.reset()

    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Next normalised action (B, A), by the base's own queue or ensemble; arguments are the base's."""
        with self.chunks.in_turn():
            action: Tensor = self.base.select_action(batch, **kwargs)
        return action

    @torch.compiler.disable
    def predict_action_chunk(  # type: ignore[override]
        self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Normalised chunk (B, n, A), as long as the base's own; arguments are the base's.

        `torch.compile` passes it by: what is compiled is not the plan's business.
        """
        told = kwargs if noise is None else {**kwargs, "noise": noise}
        chunk: Tensor = self.base.predict_action_chunk(batch, **told)
        return chunk

    def supports_rtc(self) -> bool:
        """Whether the base has real-time chunking, and can have it under this plan."""
        if not self.base.supports_rtc():
            return False
        try:
            check_continuing(self.chunks.present or self.chunks.renewed(), RealTimeChunking())
        except UnsupportedPolicy:
            return False
        return True

    def init_rtc_processor(self) -> None:
        """Called when `config.rtc_config` was set: it is read at every chunk."""

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        """Refuse: there is no training; raises `UnsupportedPolicy`."""
        raise UnsupportedPolicy(_TRAIN_ITS_BASE)

    def get_optim_params(self) -> dict[str, Any]:
        """Refuse: there is no training; raises `UnsupportedPolicy`."""
        raise UnsupportedPolicy(_TRAIN_ITS_BASE)

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the base's weights, this config and the plan; processors are lerobot's to write."""
        self.base._save_pretrained(save_directory)
        self.config._save_pretrained(save_directory)
        self.plan.save(save_directory)
