"""`vivace run`: a robot, or a simulation, in wall-clock time with an exported policy."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

from vivace.deploy.loop.ladder import load_ladder
from vivace.deploy.loop.watchdog import State
from vivace.deploy.system.interrupts import Interrupts
from vivace.eval.live.drive import drive
from vivace.eval.live.parts import settled_hz
from vivace.eval.live.results import draw, results, summary, tell_ending, write
from vivace.eval.live.settings import RunCommand
from vivace.eval.requirements import are_met, read_requirements

REQUIRED = ("effective_hz", "fresh_share", "decided")


def run(command: RunCommand) -> tuple[dict[str, Any], bool]:
    """Drive the robot until the run is over; write results.json, and draw if asked to.

    However a run ends, the robot is brought to rest, then it and the worker are closed, and only then is
    anything written, with all signals held back until that is done.

    Raises:
        VivaceError: something does not fit, or ended the run; what was measured until then is written.
        KeyboardInterrupt: a signal came before the robot was told anything.
    """
    requirements = read_requirements(command.require, ("run",), REQUIRED)
    plans = load_ladder(command.bundle, command.loop.ladder, command.public_key)
    spec = plans[command.bundle].spec
    loop = command.loop.settled(spec.mode)
    command = replace(command, control_hz=settled_hz(command, spec), loop=loop)
    with Interrupts() as interrupts:
        parts = drive(command, plans, interrupts)
        found, folder = results(parts), parts.recorder.folder
        write(folder, found)
        is_good = parts.fault is None and parts.is_at_rest and parts.watchdog.state != State.STOP
        interrupts.wants_end = False
        with suppress(KeyboardInterrupt), interrupts.let_through():  # telling and drawing may be broken off
            is_good &= are_met(requirements, {"run": {name: found["run"][name] for name in REQUIRED}})
            if command.draw:
                draw(folder, found, parts)
            tell_ending(parts, folder)
        told = summary(found, folder)
    if parts.fault is not None and not parts.has_crashed:
        raise parts.fault
    return told, is_good
