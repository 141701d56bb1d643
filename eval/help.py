"""What `vivace --help` and `vivace <verb> --help` print: every flag with what it means and its default."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from inspect import cleandoc
from typing import Any, get_args, get_type_hints

_WIDTH = 80
_FILE_OF_GROUP = "Config file for"
"""How draccus begins the text of a flag that takes a whole group from a file; --config_path does that."""
_KIND = "Which type of"
"""How it begins that of a flag that picks one of several groups."""
_CONFIG_PATH = "File of settings (YAML), by the same names; what is given as a flag wins."
SEQUENCE = """
From nothing to a robot, in our simulator:
  vivace collect --env.task=reach-v3 --collect.episodes=100 \\
      --output_dir=data/reach
  vivace train --data='[data/reach]' --train.steps=3000 \\
      --output_dir=outputs/train/reach
  vivace calibrate --policy.path=outputs/train/reach --env.task=reach-v3
  vivace eval --policy.path=outputs/train/reach --env.task=reach-moving \\
      --loop.mode=async
  vivace export --policy.path=outputs/train/reach --env.task=reach-v3 \\
      --output_dir=outputs/bundles/reach
  vivace run --bundle=outputs/bundles/reach --robot.task=reach-moving
With a lerobot checkpoint of your own begin at calibrate. vivace doctor says
what is missing on this computer; VIVACE_TRACEBACK=1 shows the stack of an error."""


def usage(verbs: Mapping[str, str]) -> str:
    """Return the page of all verbs."""
    lines = ["usage: vivace <verb> [--dotted.flag=value …]      vivace <verb> --help", ""]
    return "\n".join([*lines, *(f"  {verb:<10} {told}" for verb, told in verbs.items()), SEQUENCE])


def help_page(verb: str, config_class: type) -> str:
    """Return the page of one verb, 80 columns wide.

    Args:
        verb: e.g. "eval".
        config_class: its settings.
    """
    parts = [f"usage: vivace {verb} [--flag=value …]\n\n{cleandoc(config_class.__doc__ or '')}"]
    for title, flags in groups(config_class):
        told = [line for flag, form, what in flags for line in _entry(flag, form, what)]
        parts.append("\n".join([*textwrap.wrap(title, _WIDTH), *told]))
    return "\n\n".join(parts)


def groups(config_class: type) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Every group of flags: what it is, and (flag, form of its value, meaning and default) of each."""
    from draccus.argparsing import ArgumentParser

    kinds = dict(_kinds(config_class))
    for group in ArgumentParser(config_class=config_class).parser._action_groups:
        found = []
        for action in group._group_actions:
            flag, told = (action.option_strings or ("",))[-1], (action.help or "").strip()
            if not flag or flag == "--help" or told.startswith(_FILE_OF_GROUP):
                continue
            if flag == "--config_path":
                told = _CONFIG_PATH
            if told.startswith(_KIND):
                told = "Which of the following it is."
            found.append((flag, _form(action), f"{' '.join(told.split())} {_default(config_class, action)}"))
        if found:
            name = found[-1][0].removeprefix("--").rpartition(".")[0]
            name += kinds.get((group.title or "").partition(" ")[0], "")
            yield f"{name}: {_about(group.description)}" if name else "General", found


def _entry(flag: str, form: str, told: str) -> list[str]:
    inside = " " * 8
    lines = textwrap.wrap(told, _WIDTH, initial_indent=inside, subsequent_indent=inside)
    return [f"  {flag} {form}".rstrip(), *lines]


def _kinds(config_class: type) -> Iterator[tuple[str, str]]:
    """Name of a settings class that --<group>.type picks, and how it is picked."""
    for group in get_type_hints(config_class).values():
        known = group.get_known_choices() if hasattr(group, "get_known_choices") else {}
        yield from ((kind.__qualname__, f".type={name}") for name, kind in known.items())


def _about(description: str | None) -> str:
    """First line of what a group says of itself."""
    return (cleandoc(description or "").splitlines() or [""])[0]


def _form(action: Any) -> str:
    from draccus.wrappers.field_metavar import get_metavar

    choices = action.choices
    kinds = get_args(action.type) or (action.type,)  # of one that may be left open, too
    for kind in (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)):
        choices = [one.value for one in kind]
    if choices:
        return f"{{{','.join(map(str, choices))}}}"
    return str(get_metavar(action.type) or "")


def _default(config_class: type, action: Any) -> str:
    """What a flag is when it is not given."""
    name = action.option_strings[-1].removeprefix("--")
    if name.endswith(".type") and action.choices:
        return f"(default: {_kind(config_class, name.removesuffix('.type'))})"
    if action.default is None and _is_needed(config_class, name):
        return "(needed)"
    return f"(default: {_plain(action.default)})"


def _kind(config_class: type, name: str) -> str:
    """Which of several kinds a group is when nothing is said."""
    field = next(field for field in fields(config_class) if field.name == name)
    made: Any = field.default_factory() if field.default_factory is not MISSING else field.default
    return str(made.get_choice_name(type(made)))


def _is_needed(config_class: type, name: str) -> bool:
    found = [field for field in fields(config_class) if field.name == name]
    return any(field.default is MISSING and field.default_factory is MISSING for field in found)


def _plain(value: Any) -> str:
    """A default as one would type it."""
    if value is None or value == "" or value == () or value == [] or value == {}:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return str(value)
