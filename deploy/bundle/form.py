"""What manifest.json holds: dataclasses whose annotations are its schema.

It is read field by field as they say (`policies.plain_data`); what they cannot say, `bundle_checks` does. To
write something new into a bundle, add a field to `Contents`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from vivace.deploy.bundle.normalization import Normalization, Relative
from vivace.deploy.bundle.program import Name, Origin, Program
from vivace.policies.arrays import is_image
from vivace.policies.plain_data import SELDOM, Between, Longest, is_told, plain
from vivace.policies.spec import IMAGES, PolicySpec, Text
from vivace.policies.training_range import Range

FORMAT, VERSION = "policy_package", "1.0"
LAYOUT = 2
"""Version of the section "vivace"."""
TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"
"""Of the instruction, as `encode` reads them."""
NEXT = "next."
"""Before the name of what a token policy has read: it is the one behind the tokens read now."""
PAST = "past."
"""Before the names of what a token policy has read."""
INSTRUCTION, STATE_TOLD = "{instruction}", "{state}"
"""Where the instruction stands in a template, and the state in one that tells it; nothing else is special."""

Shape = Annotated[tuple[Annotated[int, Between(-1, 2**28)], ...], Longest(8)]
"""Of a graph's input or output; -1: any."""
Tokens = Annotated[tuple[Annotated[int, Between(0, 2**31)], ...], Longest(2**16)]


@dataclass(frozen=True)
class Graph:
    """One ONNX graph."""

    file: Annotated[str, Longest(200)]
    """Path inside the folder."""
    inputs: Mapping[Name, Shape]
    """Name -> shape."""
    outputs: Mapping[Name, Shape]
    origin: Origin
    error: Annotated[float, Between(0.0, 1e30)]
    """Largest difference of its outputs from torch's, in units of their size, when it was exported."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How instructions are tokenised."""

    length: Annotated[int, Between(1, 2**16)]
    """Tokens the policy reads, padding among them."""
    pad: Annotated[int, Between(0, 2**31)] = 0
    tokenizer: Annotated[str, Longest(200)] = ""
    """Its file; empty: only the instructions that were tokenised at export are known."""
    template: Annotated[str, Longest(100_000)] = ""
    """Text with {instruction} in it."""
    bos: Annotated[int, Between(0, 2**31)] = 0
    suffix: Tokens = ()
    verbatim: bool = field(default=False, metadata=SELDOM)
    """The instruction is written as it is given, and the tokenizer itself adds what comes before and behind;
    else it is put in lower case, behind `bos` and before `suffix`."""
    formal: bool = field(default=False, metadata=SELDOM)
    """Of a verbatim one its letters, digits, spaces and underscores alone, in lower case."""
    state: Annotated[str, Longest(500)] = field(default="", metadata=SELDOM)
    """The policy's name of the observation that {state} in the template tells: of each of its numbers,
    normalised, which of 256 equal parts of [-1, 1] it is in. Such a prompt is tokenised at every observation.
    Empty: the template tells none."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The section "vivace" of a manifest."""

    spec: PolicySpec
    graphs: Annotated[tuple[Graph, ...], Longest(4096)]
    plans: Annotated[Mapping[Annotated[str, Longest(100)], Program], Longest(256)]
    """Name -> how chunks are made under this plan; the usual one first."""
    observations: Mapping[str, Normalization]
    """One for every observation."""
    actions: Normalization
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """What the observations were trained on, as far as its statistics say."""
    prompts: Mapping[Annotated[str, Longest(10_000)], Tokens] = field(default_factory=dict)
    """Instruction -> token ids, without padding; empty of a policy that reads none."""
    prompt: PromptSettings | None = None
    """How others are tokenised."""
    renamed: Annotated[Mapping[Text, Text], Longest(64)] | None = field(default=None, metadata=SELDOM)
    """The robot's name of an observation -> the policy's, where they differ (lerobot's rename_map). The spec,
    the normalisations and the ranges have the robot's names, the graphs the policy's."""
    relative: Relative | None = field(default=None, metadata=SELDOM)
    """What actions are offsets to; None: to nothing."""
    files: Mapping[Annotated[str, Longest(200)], Annotated[str, Longest(64)]] = field(default_factory=dict)
    """File -> sha256, of all that is used."""

    def policy_name(self, key: str) -> str:
        """The policy's name of an observation."""
        return (self.renamed or {}).get(key, key)


def manifest(name: str, contents: Contents) -> dict[str, Any]:
    """Plain data of manifest.json, which has the fields of the `policy_package` format and our section."""
    spec = contents.spec
    cameras = [
        {"name": key.removeprefix(IMAGES), "shape": list(shape)}
        for key, shape in spec.observation_shapes.items()
        if is_image(key)
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "policy": {"name": name, "source": {"type": spec.type}},
        "model": {
            "n_obs_steps": spec.n_obs_steps,
            "artifacts": {"onnx": [graph.file for graph in contents.graphs]},
            "runner": {
                "type": "action_chunking",
                "chunk_size": spec.horizon,
                "n_action_steps": spec.n_action_steps,
            },
            "preprocessors": [],
            "postprocessors": [],
        },
        "hardware": {"robots": [], "cameras": cameras},
        "vivace": {"layout": LAYOUT}
        | {
            part.name: plain(getattr(contents, part.name))
            for part in fields(Contents)
            if is_told(contents, part)
        },
    }
