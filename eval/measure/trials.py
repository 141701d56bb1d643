"""The episodes of one evaluation: under each plan's latency, and filmed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.accel.technique import CalibrationData, Need
from vivace.accel.variant import Variant
from vivace.deploy.loop.budget import Rung
from vivace.deploy.loop.loop import TickRecord
from vivace.deploy.loop.settings import Mode
from vivace.deploy.telemetry.histogram import percentile
from vivace.eval.measure.pareto import gflop
from vivace.eval.measure.variants import ACCELERATED
from vivace.eval.obstacles import in_a_line
from vivace.eval.scale.job import Choice, Job
from vivace.eval.simulation.latency_model import ConstantLatency, LatencyModel
from vivace.eval.simulation.patches import patch_frames
from vivace.eval.simulation.rollout import RolloutSettings, rollout
from vivace.eval.simulation.video import caption, side_by_side, write_video
from vivace.eval.subject import env_maker, session
from vivace.eval.terminal import console
from vivace.policies.errors import BadSetting
from vivace.policies.execution import Execution
from vivace.policies.load import LoadedPolicy

if TYPE_CHECKING:
    from vivace.eval.verbs.eval import EvalCommand


@dataclass(frozen=True)
class Trial:
    """A variant made ready to run episodes, and how long its chunks take."""

    variant: Variant
    execution: Execution
    latency: LatencyModel
    ladder: "tuple[Trial, ...]" = ()
    """Plans to choose from before every chunk, best first; this one alone when empty."""
    from_load: float | None = None
    """Of a plan on a ladder: load from which on it is taken, see `Rung`."""

    @property
    def name(self) -> str:
        """Its name in results."""
        return self.variant.name

    def told(self, data: CalibrationData) -> dict[str, Any]:
        """What results say of it before any episode; an observation of `data` tells its work."""
        return {
            "name": self.name,
            "label": self.variant.label,
            "colour": self.variant.colour,
            "n_measurements": self.n_measurements,
            "gflop": gflop(self.execution, data.one),
        }

    @property
    def n_measurements(self) -> int | None:
        """How many measurements its latencies are drawn from; of a ladder, the fewest of a plan."""
        found = [rung.latency.n_measurements for rung in self.ladder or (self,)]
        return min((n for n in found if n is not None), default=None)


def rollout_settings(command: "EvalCommand", latency: LatencyModel) -> RolloutSettings:
    """What a command asks of every rollout; raises `BadSetting`."""
    return RolloutSettings(
        n_episodes=command.eval.n_episodes,
        seed=command.seed,
        batch_size=command.eval.batch_size,
        control_hz=command.env.rate_hz,
        loop=command.loop,
        latency=latency,
        max_steps=command.env.max_steps,
    )


def quiet_p99(latency: LatencyModel) -> float:
    """p99 [s] of what was measured of a plan beforehand, which is all a ladder may know.

    Raises:
        BadSetting: the latency model holds no measurements, or too few for a p99.
    """
    known = latency.measured
    if known is None:
        raise BadSetting("a ladder is chosen by measured latencies; use --latency.type=measured or bursty")
    p99_s = percentile(known.samples_s, 99)
    if p99_s is None:
        raise BadSetting(
            f"a ladder chooses by the p99 of every plan, but one has {latency.n_measurements} measurements; "
            "100 are needed: raise --eval.timed_s, or leave the slow plan out of --loop.ladder"
        )
    return known.scale * p99_s


class Trials:
    """What one evaluation runs: the episodes of its runs and of its curve, and its films."""

    def __init__(self, command: "EvalCommand", loaded: LoadedPolicy, folder: Path) -> None:
        self._command, self._loaded, self._folder = command, loaded, folder

    def jobs(self, runs: Sequence[Trial]) -> list[Job]:
        """Every run under its own latency, and the points of the curve, in one list: nobody waits between."""
        found = [self._job(run, run.name) for run in runs]
        for run, mode, latency_s, name in self._points(runs):
            found.append(self._job(replace(run, latency=ConstantLatency(seconds=latency_s)), name, mode))
        return found

    def curve(self, runs: Sequence[Trial]) -> dict[str, Any]:
        """Lines of success and jumps at constant latencies, one for each chosen run and mode.

        Returns:
            Name of a line -> what it is, and its points, each with the name of the job of its episodes.
        """
        own, lines = self._command.loop.mode, dict[str, Any]()
        for run, mode, latency_s, name in self._points(runs):
            label = run.variant.label if len(self._modes()) == 1 else f"{run.variant.label}, {mode}"
            told = {"run": run.name, "mode": mode.value, "colour": run.variant.colour, "label": label}
            line = lines.setdefault(run.name if mode == own else f"{run.name}_{mode}", told | {"points": []})
            line["points"].append({"latency_s": latency_s, "episodes": name})
        return lines

    def _points(self, runs: Sequence[Trial]) -> Iterator[tuple[Trial, Mode, float, str]]:
        """Run, mode, latency [s] and name of every point of the curve."""
        options, own = self._command.eval, self._command.loop.mode
        names = [run.name for run in runs]
        wanted = options.curve_runs or [ACCELERATED.name if ACCELERATED.name in names else names[0]]
        for run in runs:
            for mode in self._modes() if run.name in wanted else ():
                suffix = "" if mode == own else f"_{mode}"
                for latency_s in sorted(set(options.curve)):
                    yield run, mode, latency_s, f"{run.name}{suffix}_{latency_s:g}s"

    def _modes(self) -> list[Mode]:
        """Modes in which there is a curve."""
        return [Mode(mode) for mode in self._command.eval.curve_modes] or [self._command.loop.known_mode]

    def film(self, runs: list[Trial], seed: int) -> str | None:
        """Run one episode of every run again with a camera; None, and a line why, if that fails."""

        def frames() -> list[np.ndarray]:
            films = {}
            for run in runs:
                with console.status(f"filming {run.variant.label}"):
                    films[run.name] = self._frames(run, seed)
            return side_by_side(films)

        return self._video("videos/side_by_side.mp4", frames, self._command.env.rate_hz)

    def film_patches(self, run: Trial, seed: int) -> str | None:
        """Draw which patches a run keeps through one episode; None if it keeps all or there is no camera."""
        if not Need.LANGUAGE.is_met(run.execution.policy):
            return None
        runner = session(self._command, self._loaded, run.execution)

        def frames() -> list[np.ndarray]:
            env = self._command.env
            with console.status("drawing the patches that were kept"):
                return patch_frames(runner, env_maker(self._command, runner.spec), seed, env.max_steps)

        return self._video("videos/patches.mp4", frames, 3)

    def _video(self, name: str, make_frames: Callable[[], list[np.ndarray]], fps: float) -> str | None:
        """Write a film; None if it has no frames, and with a line why if it cannot be made."""
        try:
            frames = make_frames()
            if frames:
                write_video(self._folder / name, frames, fps)
        except Exception as error:  # whatever it is, a film must not cost an evaluation its results
            told = f"no film {name}: {in_a_line(error)}"
            console.print(told, style="yellow", highlight=False, markup=False)
            return None
        return name if frames else None

    def _frames(self, run: Trial, seed: int) -> list[np.ndarray]:
        frames: list[np.ndarray] = []
        control_hz = self._command.env.rate_hz

        def on_tick(seed: int, env: Any, record: TickRecord) -> None:
            frames.append(
                caption(env.render(), run.variant.label, record.source.value, record.tick, control_hz)
            )

        runner = session(self._command, self._loaded, run.execution)
        settings = replace(rollout_settings(self._command, run.latency), n_episodes=1, seed=seed)
        rollout(env_maker(self._command, runner.spec), runner.predict, runner.spec, settings, on_tick=on_tick)
        return frames

    def _job(self, run: Trial, name: str, mode: Mode | None = None) -> Job:
        own = self._command.loop
        command = replace(self._command, loop=own if mode is None else own.in_mode(mode))
        runner = session(command, self._loaded, run.execution)
        ladder = tuple(
            Choice(
                Rung(rung.name, quiet_p99(rung.latency), rung.from_load),
                session(self._command, self._loaded, rung.execution),
                rung.latency,
            )
            for rung in run.ladder
        )
        settings = rollout_settings(command, run.latency)
        make_env = env_maker(self._command, runner.spec)
        return Job(name, name.replace("_", " "), runner, make_env, settings, ladder)
