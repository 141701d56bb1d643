"""The episodes of one evaluation: run under each plan's latency, stored as they end, filmed."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.accel.technique import Need
from vivace.accel.variant import Variant
from vivace.deploy.loop.budget import Rung
from vivace.deploy.loop.loop import TickRecord
from vivace.deploy.loop.settings import Mode
from vivace.deploy.telemetry.histogram import percentile
from vivace.deploy.workers.worker import Predict
from vivace.eval.measure.statistics import curve_area
from vivace.eval.measure.variants import ACCELERATED
from vivace.eval.obstacles import in_a_line
from vivace.eval.simulation.episode import EpisodeResult, append_result, load_results, mean_jump
from vivace.eval.simulation.latency_model import ConstantLatency, LatencyModel
from vivace.eval.simulation.patches import patch_frames
from vivace.eval.simulation.rollout import RolloutSettings, RungRun, rollout
from vivace.eval.simulation.video import caption, side_by_side, write_video
from vivace.eval.subject import env_maker, session
from vivace.eval.terminal import console, progress
from vivace.policies.errors import BadSetting
from vivace.policies.execution import Execution
from vivace.policies.load import LoadedPolicy
from vivace.policies.spec import PolicySpec

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

    @property
    def name(self) -> str:
        """Its name in results."""
        return self.variant.name

    @property
    def n_measurements(self) -> int | None:
        """How many measurements its latencies are drawn from; of a ladder, the fewest of a plan."""
        found = [rung.latency.n_measurements for rung in self.ladder or (self,)]
        return min((n for n in found if n is not None), default=None)


class Stopwatch:
    """Tells the time the policy took from the time the world took."""

    def __init__(self) -> None:
        self.inference_s = self.total_s = self.simulated_s = 0.0

    def timed(self, predict: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        """Wrap `Session.predict`."""

        def run(*args: Any) -> np.ndarray:
            began = time.perf_counter()
            actions = predict(*args)
            self.inference_s += time.perf_counter() - began
            return actions

        return run

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """Time a whole rollout."""
        began = time.perf_counter()
        yield
        self.total_s += time.perf_counter() - began

    def summary(self) -> dict[str, float]:
        """Wall times [s], simulated time [s] and how much faster than real time the world ran."""
        world_s = self.total_s - self.inference_s
        return {
            "inference_s": round(self.inference_s, 2),
            "world_s": round(world_s, 2),
            "simulated_s": round(self.simulated_s, 2),
            "faster_than_real_time": round(self.simulated_s / world_s, 1) if world_s > 0 else 0.0,
        }


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


def stored_rollout(
    store: Path,
    label: str,
    make_env: Callable[[], Any],
    predict: Predict,
    spec: PolicySpec,
    settings: RolloutSettings,
    on_episode: Callable[[EpisodeResult], None] = lambda result: None,
    ladder: Sequence[RungRun] = (),
) -> list[EpisodeResult]:
    """`rollout` with a bar; each episode is added to the file `store` as it ends, those in it are done."""
    done = load_results(store)
    store.parent.mkdir(exist_ok=True)
    with progress() as bars:
        bar = bars.add_task(label, total=settings.n_episodes, completed=len(done))

        def on_result(result: EpisodeResult) -> None:
            append_result(store, result)
            on_episode(result)
            bars.advance(bar)

        results = rollout(make_env, predict, spec, settings, on_result, done, ladder=ladder)
    _tell_failures(label, results)
    return results


def _tell_failures(label: str, results: Sequence[EpisodeResult]) -> None:
    """Say how many chunks a policy failed to give, and what of."""
    failed = [error for result in results for error in result.errors]
    if failed:
        asked = sum(len(result.latencies_s) for result in results)
        console.print(
            f"{label}: {len(failed)} of {asked} chunks failed, the fallback acted; the first: {failed[0]}",
            style="yellow",
            highlight=False,
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
    """Runs the episodes of one command; those an interrupted evaluation has stored are not run again."""

    def __init__(self, command: "EvalCommand", loaded: LoadedPolicy, folder: Path) -> None:
        self._command, self._loaded, self._folder = command, loaded, folder
        self.stopwatch = Stopwatch()

    def episodes(self, run: Trial) -> list[EpisodeResult]:
        """Every episode of a run under its own latency."""
        return self._episodes(run, run.name)

    def curve(self, runs: list[Trial]) -> dict[str, Any]:
        """Success and jumps of the chosen runs at constant latencies, a line for each run and mode."""
        options = self._command.eval
        if not options.curve:
            return {}
        names = [run.name for run in runs]
        wanted = options.curve_runs or [ACCELERATED.name if ACCELERATED.name in names else names[0]]
        own = self._command.loop.mode
        modes = [Mode(mode) for mode in options.curve_modes] or [own]
        return {
            run.name if mode == own else f"{run.name}_{mode}": {
                "run": run.name,
                "mode": mode.value,
                "colour": run.variant.colour,
                "label": run.variant.label if len(modes) == 1 else f"{run.variant.label}, {mode}",
                **self._line(run, mode),
            }
            for run in runs
            if run.name in wanted
            for mode in modes
        }

    def _line(self, run: Trial, mode: Mode) -> dict[str, Any]:
        """Points of one curve, and the area under it."""
        points: list[dict[str, Any]] = []
        for latency_s in sorted(set(self._command.eval.curve)):
            constant = replace(run, latency=ConstantLatency(seconds=latency_s))
            suffix = "" if mode == self._command.loop.mode else f"_{mode}"
            episodes = self._episodes(constant, f"{run.name}{suffix}_{latency_s:g}s", mode)
            points.append(
                {
                    "latency_s": latency_s,
                    "successes": sum(e.success for e in episodes),
                    "n": len(episodes),
                    "seam_jump": mean_jump(e.seam_jumps for e in episodes),
                    "inner_jump": mean_jump(e.inner_jumps for e in episodes),
                }
            )
        rates = [point["successes"] / point["n"] for point in points]
        return {"points": points, "area": curve_area([point["latency_s"] for point in points], rates)}

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

    def _episodes(self, run: Trial, name: str, mode: Mode | None = None) -> list[EpisodeResult]:
        own = self._command.loop
        command = replace(self._command, loop=own if mode is None else own.in_mode(mode))
        settings = rollout_settings(command, run.latency)
        runner = session(command, self._loaded, run.execution)

        def on_episode(result: EpisodeResult) -> None:
            self.stopwatch.simulated_s += result.steps / self._command.env.rate_hz

        rungs = []
        for rung in run.ladder:
            predict = self.stopwatch.timed(session(self._command, self._loaded, rung.execution).predict)
            rungs.append(RungRun(Rung(rung.name, quiet_p99(rung.latency)), predict, rung.latency))
        with self.stopwatch.rollout():
            return stored_rollout(
                self._folder / "episodes" / f"{name}.jsonl",
                name.replace("_", " "),
                env_maker(self._command, runner.spec),
                self.stopwatch.timed(runner.predict),
                runner.spec,
                settings,
                on_episode,
                rungs,
            )
