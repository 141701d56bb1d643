"""What lerobot gains by importing `lerobot_policy_vivace`: our policy types, and faster ones of its own.

A checkpoint of a type that comes apart, loaded by lerobot's own class, runs under the plan beside it
(`acceleration.json`); without one only work is left out that nobody reads, and what does not change is
computed once. Then the first chunk is made twice, by lerobot's own method too, of the same observation and
noise: the result is told in one line, and where it differs by more than rounding may, lerobot's own stays.
VIVACE=off leaves all of it out.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from lerobot.policies.pretrained import PreTrainedPolicy

from vivace.accel.apply import accelerate, exact_plan
from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.deploy.lerobot import configuration_vivace  # noqa: F401  registers the type
from vivace.deploy.lerobot.checked import LOG, CheckedChunks, as_configured
from vivace.deploy.lerobot.chunks import drops_in
from vivace.policies.checkpoint.find import resolve
from vivace.policies.checkpoint.weights import is_loading
from vivace.policies.errors import VivaceError, in_one_line
from vivace.policies.execution import Execution
from vivace.policies.load import ADAPTERS, fingerprint_of, stage
from vivace.policies.spec import Fingerprint

_OURS = ("dp_transformer", "cogact", "token_vla")
"""Policies that lerobot lacks; their adapters' modules register them."""
_SWITCH, _OFF = "VIVACE", ("off", "0", "false", "no")
_MARK = "is_wrapped_by_vivace"


def install() -> None:
    """Register our types; let every class of lerobot's, also of those to come, load faster policies."""
    for kind in _OURS:
        ADAPTERS.find(kind)
    if os.environ.get(_SWITCH, "").lower() in _OFF:
        return
    for known in (PreTrainedPolicy, *_descendants(PreTrainedPolicy)):
        _wrap(known)
    begins: Any = PreTrainedPolicy.__init_subclass__
    if hasattr(begins, _MARK):
        return

    def begin(cls: type, **kwargs: Any) -> None:
        begins.__func__(cls, **kwargs)
        _wrap(cls)

    setattr(begin, _MARK, True)
    PreTrainedPolicy.__init_subclass__ = classmethod(begin)  # type: ignore[assignment]


def _descendants(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return [cls for child in children for cls in (child, *_descendants(child))]


def _wrap(cls: type) -> None:
    """Let what a class loads by a method of its own be faster; the method stays what it is otherwise."""
    own = vars(cls).get("from_pretrained")
    if not isinstance(own, classmethod) or hasattr(own.__func__, _MARK):
        return
    load: Callable[..., Any] = own.__func__

    @functools.wraps(load)
    def from_pretrained(asked: type, pretrained_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        policy = load(asked, pretrained_name_or_path, *args, **kwargs)
        if not is_loading():  # by ourselves: then lerobot's own object is wanted as it is
            drop_in(policy, str(pretrained_name_or_path), kwargs.get("revision"))
        return policy

    setattr(from_pretrained, _MARK, True)
    cls.from_pretrained = classmethod(from_pretrained)  # type: ignore[attr-defined]


def drop_in(policy: Any, place: str, revision: str | None = None) -> None:
    """Let chunks of a policy that lerobot has loaded be made by us; whatever speaks against it is told.

    Args:
        policy: lerobot's own object.
        place: folder of its checkpoint, or its name on the Hub.
        revision: of the Hub.
    """
    kind = policy.config.type
    if ADAPTERS.find(kind) is None:
        return
    try:
        form: Any = stage(policy)
    except VivaceError as error:
        LOG.warning("vivace: %s stays lerobot's own: %s", kind, in_one_line(error))
        return
    if not drops_in(form) or isinstance(_resolved(policy, form.chunk_method), CheckedChunks):
        return
    try:
        plan = _plan_beside(policy, place, revision)
    except VivaceError as error:
        plan = None
        LOG.warning("vivace: the plan beside %s is left out: %s", place, in_one_line(error))

    def build(policy: Any) -> Execution:
        staged = stage(policy)
        if plan is None:
            return accelerate(staged, exact_plan(staged, _NOBODY))
        return accelerate(staged, as_configured(plan, policy))

    CheckedChunks(policy, form.chunk_method, build)


_NOBODY = Fingerprint("", "", "", "", ())
"""Of a plan that is never stored."""


def _resolved(policy: Any, method: str) -> Any:
    owner, _, name = method.rpartition(".")
    return getattr(policy.get_submodule(owner), name)


def _plan_beside(policy: Any, place: str, revision: str | None) -> AccelerationPlan | None:
    """Read the plan beside a checkpoint; None if there is none.

    Raises:
        PlanMismatch: it is damaged, or another policy's.
        PolicyNotFound: what the checkpoint needs besides cannot be had, so it is not known whose the plan is.
    """
    folder = Path(place)
    if not folder.is_dir():
        try:
            hf_hub_download(place, FILE_NAME, revision=revision, local_files_only=constants.HF_HUB_OFFLINE)
        except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError):
            return None
        folder = resolve(f"{place}@{revision}" if revision else place)
    if not (folder / FILE_NAME).is_file():
        return None
    plan = AccelerationPlan.load(folder)
    plan.check(fingerprint_of(folder, policy))
    return plan
