"""The command line: `vivace <verb> --dotted.flag=value …`.

Exit codes: 0 done, 1 a stated target was missed or something unforeseen happened, 2 bad input or something
that this computer lacks, 130 interrupted.
"""

import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from vivace.eval.help import help_page, usage
from vivace.eval.plugins import forget_plugins, import_plugin
from vivace.policies.errors import BadSetting, VivaceError, in_one_line

VERBS = {
    "eval": "Evaluate a policy, as trained and under its plan if it has one, in a world that does not wait.",
    "bench": "Time plans interleaved in one process, batch 1; judge them by success too.",
    "tune": "Find the plan that keeps a rate and costs the least; save it as acceleration.json.",
    "calibrate": "Calibrate techniques for a policy; save them as acceleration.json beside it.",
    "explain": "Say what a plan does: step by block grid, FLOPs saved stage by stage.",
    "report": "Write the pages of a results.json again, or print a table of it as Markdown.",
    "collect": "Demonstrate a task with its scripted expert and store a LeRobotDataset.",
    "train": "Train a policy on demonstrations; an interrupted run in output_dir continues.",
    "distill": "Teach a token VLA to settle in few passes; an interrupted run in output_dir continues.",
    "export": "Export a policy under its plan as ONNX graphs that run without torch; parity is proven first.",
    "accelerate": "Make a checkpoint that lerobot-eval and lerobot-rollout run under a plan.",
    "serve": "Serve policies to lerobot's robot clients, accelerated ones too.",
    "check": "Check a bundle: digests, signature, versions, sizes, files, graphs, and its golden chunk.",
    "run": "Drive a robot, or a simulation, in wall-clock time with an exported policy.",
    "convert": "Convert a CogACT run folder, an OpenVLA or a Diffusion Policy checkpoint to lerobot's, once.",
    "doctor": "Check this installation: versions, simulator, rendering, GPUs, bundled checkpoints, parity.",
}
"""Verb -> what it does. Each is a module of `eval.verbs` with `run` and settings such as `EvalCommand`."""
_HOME = "vivace.eval.verbs"
_DISCOVER = ".discover_packages_path"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the last line on stdout is its summary as JSON. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _write_what_can_be_written()
    if not arguments or arguments[0] in ("-h", "--help"):
        _tell(usage(VERBS), sys.stdout)
        return 0 if arguments else 2
    verb = arguments[0]
    if verb not in VERBS:
        print(f"vivace: unknown verb {verb!r}; verbs: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    if sys.platform == "linux":  # elsewhere mujoco refuses it
        os.environ.setdefault("MUJOCO_GL", "egl")
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)  # video decoders we do not use
    from vivace.deploy.system.interrupts import outlive

    command: Any = None
    try:
        run = _load(f"{_HOME}.{verb}:run")
        command = _parse(verb, arguments[1:])
        summary, is_met = run(command)
    except KeyboardInterrupt:
        goes_on = "run the same command with the same --output_dir to continue"
        _complain(verb, f"interrupted; {'nothing was commanded' if verb == 'run' else goes_on}")
        return 130
    except Exception as error:
        return _end(verb, error, getattr(command, "output_dir", None))
    if argv is None and verb == "run":
        outlive()
    _tell(json.dumps(summary, default=str), sys.stdout)
    return 0 if is_met else 1


def _end(verb: str, error: Exception, folder: str | None) -> int:
    """Say in one line what ended a verb; returns the exit code."""
    from vivace.deploy.system.last_resort import last_line, wants_trace
    from vivace.eval.obstacles import obstacle

    if known := obstacle(error):
        if wants_trace():
            traceback.print_exception(error)
        _complain(verb, f"vivace {verb}: {known}")
        return 2
    _complain(verb, last_line(error, f"vivace {verb}", folder))
    return 1


def _complain(verb: str, line: str) -> None:
    """Say what ended a verb; where a robot is driven nobody waits for a terminal that is stopped."""
    if verb != "run" or find_spec("rich") is None:
        _tell(line, sys.stderr)
        return
    from vivace.eval.live.screen import tell

    tell(line)


def _tell(line: str, stream: TextIO) -> None:
    """Print the last line; nobody may be there to read it."""
    try:
        print(line, file=stream, flush=True)
    except OSError:  # the terminal is gone; Python would try again at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parse(verb: str, arguments: list[str]) -> Any:
    config_class = _load(f"{_HOME}.{verb}:{verb.title()}Command")
    arguments = _discover(arguments)
    arguments = _named(arguments, getattr(config_class, "POSITIONAL", ()))
    draccus = _load("draccus")
    said = io.StringIO()  # argparse prints its usage, all flags of it, before the line that matters
    try:
        given = dict(_names(_settings_file(arguments))) | dict(_flags(arguments))
        _check_renamed(getattr(config_class, "RENAMED", {}), given.keys())
        if complete := getattr(config_class, "complete", None):
            config_class = complete(given)
        if {"-h", "--help"} & set(arguments):
            _tell(help_page(verb, config_class), sys.stdout)
            sys.exit(0)
        with redirect_stderr(said):
            return draccus.parse(config_class=config_class, args=arguments, prog=f"vivace {verb}")
    except draccus.utils.DraccusException as error:
        if own := _own_error(error):
            raise own from error
        raise BadSetting(f"{_last_line(str(error))}; vivace {verb} --help lists the flags") from error
    except SystemExit as error:
        if not error.code:
            raise
        message = _last_line(said.getvalue()).partition("error: ")[2]
        raise BadSetting(f"{message}; vivace {verb} --help lists the flags") from error


def _named(arguments: list[str], names: Sequence[str]) -> list[str]:
    """Give the first arguments, as far as they are no flags, the names of flags that may be left out."""
    n = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    bare = [f"--{name}={value}" for name, value in zip(names, arguments[:n], strict=False)]
    return [*bare, *arguments[len(bare) :]]


def _discover(arguments: list[str]) -> list[str]:
    """Import the packages that flags such as --policy.discover_packages_path=mine name, as lerobot does.

    They register policies, processor steps, environments; returns the other arguments.

    Raises:
        BadSetting: a package cannot be imported.
    """
    forget_plugins()
    named = [a for a in arguments if a.startswith("--") and a.partition("=")[0].endswith(_DISCOVER)]
    for argument in named:
        flag, _, package = argument.partition("=")
        parser = _load("lerobot.configs.parser")
        try:
            import_plugin(package)
        except (parser.PluginLoadError, ImportError, ValueError) as error:
            raise BadSetting(f"{flag}={package} cannot be imported: {in_one_line(error)}") from error
    return [argument for argument in arguments if argument not in named]


def _own_error(error: BaseException | None) -> VivaceError | None:
    """The error of ours that an error was raised from, if there is one: it says it better."""
    while error is not None and not isinstance(error, VivaceError):
        error = error.__cause__ or error.__context__
    return error


def _check_renamed(renamed: Mapping[str, str], given: Collection[str]) -> None:
    """Raise `BadSetting` for a flag, or a name in a file of settings, that is called otherwise today."""
    for name in sorted(renamed.keys() & given):
        raise BadSetting(f"{name} is called {renamed[name]} now; write --{renamed[name]}=…")


def _flags(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Dotted name and text of every flag."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument.startswith("--"):
            name, is_joined, value = argument[2:].partition("=")
            yield name, value if is_joined else following


def _names(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of what is set in a file of settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _names(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _settings_file(arguments: list[str]) -> dict[str, Any]:
    """What is in the files that --config_path names, nothing if it names none.

    Raises:
        BadSetting: it is not a file of settings by name.
    """
    from draccus.cfgparsing import load_config

    settings: dict[str, Any] = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, is_joined, path = argument.partition("=")
        if name != "--config_path":
            continue
        file = Path(path if is_joined else following)
        if not file.is_file():
            raise BadSetting(f"there is no file of settings at config_path={file}")
        try:
            with file.open(encoding="utf-8") as opened:
                found = load_config(opened, file=str(file))
        except OSError as error:
            raise BadSetting(f"config_path={file} cannot be read ({error.strerror})") from error
        if not isinstance(found, dict):
            raise BadSetting(
                f"{file} holds no settings but {type(found).__name__}; needed is YAML such as control_hz: 20"
            )
        settings |= found
    return settings


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["cannot be read"])[-1]


def _load(place: str) -> Any:
    """Import "module" or "module:name"."""
    module, _, name = place.partition(":")
    found = import_module(module)
    return getattr(found, name) if name else found


def _write_what_can_be_written() -> None:
    """Let no arrow or dash end a run where the terminal's encoding, such as Windows's own, lacks it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
