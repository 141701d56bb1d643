"""`vivace check`: is a bundle whole, does it fit together, and does it do here what it did at export?"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rich.text import Text

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.inference.ort_graph import Graphs, Runtime
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.eval.terminal import console
from vivace.policies.errors import BadSetting


@dataclass(kw_only=True)
class CheckCommand:
    """Check a bundle: digests, signature, versions, sizes, files, graphs, and its golden chunk.

    Example: vivace check outputs/bundles/reach --public_key=public.pem
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("bundle",)

    bundle: str = ""
    """Folder that vivace export wrote; may be given without --bundle=."""
    public_key: str = ""
    """PEM file: the bundle must be signed with the private key that belongs to it."""
    threads: int | None = None
    """Of one inference; ONNX Runtime's own choice when not given."""

    def __post_init__(self) -> None:
        """A bundle must be named."""
        if not self.bundle:
            raise BadSetting("vivace check needs a folder that vivace export wrote: vivace check BUNDLE")


def run(command: CheckCommand) -> tuple[dict[str, Any], bool]:
    """Check everything there is to check; the first thing that is wrong is the error."""
    checks: dict[str, str] = {}

    def told(what: str, found: str) -> None:
        checks[what] = found
        console.print(Text.assemble(("ok  ", "green"), f"{what:<10} {found}"), soft_wrap=True)

    bundle = Bundle.load(command.bundle, command.public_key, told)
    if not command.public_key:
        console.print("    signature  not checked: no --public_key was given", highlight=False)
    graphs = Graphs(Runtime.of(("cpu",), command.threads, shares_threads=False))
    errors = {
        name: OrtPolicy(replace(bundle, plan=name), graphs=graphs).golden_error for name in bundle.plans
    }
    told("graphs", f"{len(bundle.graphs)} loaded; their inputs and outputs are the manifest's")
    told(
        "golden",
        "; ".join(f"the chunk of plan {name} is off by {error:.2g}" for name, error in errors.items()),
    )
    return {"bundle": command.bundle, "checks": checks, "golden_error": max(errors.values())}, True
