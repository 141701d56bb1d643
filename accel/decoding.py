"""What techniques that decode tokens share, and which of them a plan has."""

from dataclasses import replace
from typing import Any, ClassVar, cast

from vivace.accel.technique import Need, Seam, Technique, decoding
from vivace.policies.execution import Execution
from vivace.policies.language.decoding import Decoder
from vivace.policies.staged import TokenPolicy


class Decoding(Technique):
    """What techniques that decode tokens share: they are the decoder."""

    seam: ClassVar[Seam] = Seam.DECODE
    needs: ClassVar[tuple[Need, ...]] = (Need.TOKENS,)
    is_static: ClassVar[bool] = False

    @property
    def reads_one_size(self) -> bool:
        """Whether every pass reads as many tokens as the last: one compiled graph then serves them all."""
        return False

    @property
    def is_exportable(self) -> bool:
        """Whether numpy can decode so, around a bundle's graphs."""
        return self.in_bundle() is not None

    def in_bundle(self) -> dict[str, Any] | None:
        """How a bundle's manifest says it (`deploy.bundle.token_program.Decoder`); None: numpy cannot."""
        return None

    def n_written(self, policy: TokenPolicy) -> int:
        """Tokens of a chunk that are decoded."""
        return policy.n_tokens

    def apply(self, execution: Execution) -> Execution:
        """Decode so."""
        return replace(decoding(execution, self.kind), decoder=cast(Decoder, self))


def decoding_of(execution: Execution) -> Decoding | None:
    """The technique by which a plan decodes tokens; None: greedily, as trained."""
    techniques = execution.plan.techniques if execution.plan else ()
    return next((one for one in techniques if isinstance(one, Decoding)), None)
