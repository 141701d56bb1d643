"""Exported bundles beside the plans of `vivace bench`: the same observations, the same rounds."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.deploy.export.parity import sample_bundle
from vivace.deploy.export.prompts import padded
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.deploy.loop.warm_up import warm_up
from vivace.deploy.workers.process_worker import ProcessWorker, bundles
from vivace.eval.measure.action_error import row_errors
from vivace.eval.measure.latencies import asked
from vivace.eval.measure.pareto import speed_row
from vivace.eval.measure.statistics import spread_of
from vivace.policies.carry import FOLLOWED
from vivace.policies.errors import BadSetting
from vivace.policies.load import LoadedPolicy

_PATIENT = 10.0
"""A first chunk may take so many times as long as others."""
_LOADED_WITHIN_S = 600.0
"""So long may a bundle take to load and to make its golden chunk again [s]."""


class BundleRun:
    """One bundle, run on observations as the loop gives them."""

    def __init__(self, folder: str, loaded: LoadedPolicy, threads: int | None) -> None:
        self.policy, self._threads = OrtPolicy(folder, threads=threads), threads
        self._made = 0
        self.name = f"ort:{folder}"
        bundle = self.policy.bundle
        receipt = bundle.receipt
        self.plan = AccelerationPlan.load(bundle.record(bundle.plan_name))
        held, needed = receipt["fingerprint"], vars(loaded.fingerprint)
        other = [name for name in ("weights", "processors") if held.get(name) != needed[name]]
        if other:
            raise BadSetting(
                f"bundle {folder} holds another policy: its {' and '.join(other)} are others than those of "
                f"{loaded.path}; export this one: vivace export"
            )
        plan = ", ".join(receipt["techniques"]) or "as trained"
        self.label = f"ONNX Runtime {receipt['precision']}, {plan}"

    @property
    def cycle(self) -> int:
        """Chunks after which the work repeats."""
        return self.policy.bundle.program.looks_every

    def __call__(self, one: CalibrationData) -> None:
        """Predict a chunk of one observation, or those of a cycle; each follows the one before."""
        self.policy.task = one.raw["task"][0]
        if not self.policy.bundle.program.carries:
            self.policy.predict(asked(one), one.noise_keys)
            return
        for _ in range(self.cycle):
            follows = np.array([[self._made - 1, self.policy.spec.n_action_steps]])
            self.policy.predict(asked(one) | {FOLLOWED: follows}, [(0, self._made)])
            self._made += 1

    def cold_start_s(self, chunk_s: float = 0.0) -> float:
        """From starting an inference process, as `vivace run` does, to its first chunk [s].

        Args:
            chunk_s: what a chunk takes: a policy of true size takes longer than a robot would wait.
        """
        bundle = self.policy.bundle
        load = bundles({self.name: bundle.reference}, threads=self._threads)
        worker = ProcessWorker(
            load, bundle.spec, stall_s=max(5.0, _PATIENT * chunk_s), patience_s=_LOADED_WITHIN_S
        )
        began = time.monotonic()
        try:
            worker.start()
            warm_up(worker, bundle.spec, bundle.usual_task, 1, observations=bundle.example)
            return time.monotonic() - began
        finally:
            worker.close()

    def row(
        self, times: Mapping[str, Sequence[float]], reference: torch.Tensor, data: CalibrationData
    ) -> dict[str, Any]:
        """Return the bundle's row of the table; arguments as of `bench.pareto_row`."""
        compared: dict[str, Any] = {"action_error": None, "follows": True}
        if not self.policy.bundle.program.carries:
            longer = padded(data, self.policy.bundle.prompt)  # lerobot pads to the longest prompt of a batch
            found = np.concatenate([sample_bundle(self.policy, one) for one in longer.ones()])
            compared = spread_of("action_error", row_errors(torch.from_numpy(found), reference.cpu()))
        bundle = self.policy.bundle
        return {
            "name": self.name,
            "label": self.label,
            **speed_row(times, self.name),
            **compared,
            "gflop": None,
            "bundle": {
                "graphs": len(bundle.program.graphs),
                "megabytes": bundle.megabytes,
                "cold_start_s": self.cold_start_s(float(np.median(times[self.name]))),
                "chunk_error": bundle.receipt["chunk_error"],
            },
        }
