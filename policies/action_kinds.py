"""What each dimension of an action means: who says it, and what to do when they differ. Free of torch.

    checkpoint   field `action_kinds` of its config, or whoever loads it: a simulation knows its own
    bundle       what the policy was exported with; "unknown" where nobody said
    robot        its attribute `action_kinds`, else its names: lerobot's end in .pos or .vel
    flag         the last word over a bundle's; what the robot says of itself it must not contradict

What a dimension means decides what is safe when no action is there. So a robot moves only if all is known.
"""

from collections.abc import Sequence
from typing import Any

from vivace.policies.errors import BadBundle, BadSetting
from vivace.policies.spec import ActionKind

SUFFIXES = {".pos": ActionKind.ABSOLUTE, ".vel": ActionKind.VELOCITY}
"""Ends of lerobot's names -> what they mean."""
KNOWN = tuple(kind.value for kind in ActionKind if kind != ActionKind.UNKNOWN)
"""What a user may say."""


def read_kinds(
    values: Sequence[str], size: int, where: str, also: tuple[str, ...] = ()
) -> tuple[ActionKind, ...]:
    """Return the kinds that texts name, one for each dimension or one for all.

    Args:
        values: the texts; none is "nobody said".
        size: dimensions of an action.
        where: what they were given by, for the message.
        also: further values that may be there.

    Raises:
        BadSetting: there are too few or too many, or one is no kind.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise BadSetting(f"{where} is {values!r}; a list is needed, of {', '.join(KNOWN)}")
    for value in values:
        if value not in (*KNOWN, *also):
            raise BadSetting(f"{where} has {value!r}; needed: {', '.join(KNOWN)}")
    if len(values) not in (0, 1, size):
        raise BadSetting(
            f"{where} has {len(values)} entries, an action {size} dimensions; give one for each, or one"
        )
    given = [ActionKind(value) for value in values] or [ActionKind.UNKNOWN]
    return tuple(given * (size if len(given) == 1 else 1))


def kinds_of_names(names: Sequence[str]) -> tuple[ActionKind, ...]:
    """Return what lerobot's names of action dimensions say; unknown where they say nothing."""
    return tuple(
        next((kind for end, kind in SUFFIXES.items() if name.endswith(end)), ActionKind.UNKNOWN)
        for name in names
    )


def kinds_of_config(config: Any, given: tuple[ActionKind, ...], size: int) -> tuple[ActionKind, ...]:
    """Return what a checkpoint's actions mean: as its config says or as given; unknown if neither says it.

    Raises:
        BadSetting: the two contradict each other, or there are not as many as numbers of an action.
    """
    if len(given) not in (0, 1, size):
        raise BadSetting(
            f"actions here have {len(given)} dimensions ({', '.join(given)}), the policy's have {size}; take "
            "a policy that was trained here, or the environment or data it was trained in"
        )
    given = given * size if len(given) == 1 else given
    own = read_kinds(getattr(config, "action_kinds", None) or (), size, "config.json's action_kinds")
    if ActionKind.UNKNOWN in own:
        return given or own
    if given and given != own:
        raise BadSetting(
            f"the checkpoint's config.json says its actions are {', '.join(own)}, here they would be "
            f"{', '.join(given)}; take another environment, or mend action_kinds in config.json"
        )
    return own


def settle_kinds(
    names: Sequence[str],
    exported: Sequence[ActionKind],
    robot: Sequence[ActionKind],
    given: Sequence[ActionKind],
    flag: str = "--robot.action_kinds",
) -> tuple[ActionKind, ...]:
    """Return what the dimensions mean, all of them known.

    Args:
        names: of the dimensions.
        exported: what the bundle says.
        robot: what the robot says.
        given: what the user says.
        flag: what the user says it by.

    Raises:
        BadSetting: the user contradicts the robot, or nobody says what a dimension means.
        BadBundle: bundle and robot contradict each other.
    """
    unknown = ActionKind.UNKNOWN
    missing = []
    for name, theirs, its, said in zip(names, exported, robot, given, strict=True):
        if unknown not in (its, said) and its != said:
            raise BadSetting(
                f"{flag} says that {name!r} is {said}, the robot says {its}; leave it to the robot"
            )
        if unknown not in (theirs, its) and theirs != its and said == unknown:
            raise BadBundle(
                f"the bundle says that {name!r} is {theirs}, the robot says {its}; take a bundle of a policy "
                f"that was trained for this robot, or say which is right: {flag}='[…]', one a dimension"
            )
        if theirs == its == said == unknown:
            missing.append(name)
    if missing:
        raise BadSetting(
            f"nobody says what the actions {', '.join(missing)} mean, so nobody knows what stops them; say "
            f"it for each of {', '.join(names)}: {flag}='[…]', of {', '.join(KNOWN)}"
        )
    pairs = zip(exported, robot, given, strict=True)
    return tuple(next(kind for kind in (said, its, theirs) if kind != unknown) for theirs, its, said in pairs)
