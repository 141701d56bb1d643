"""`vivace eval`: unaccelerated and accelerated side by side, in a world that does not wait."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vivace.accel.accelerate import accelerate
from vivace.accel.explain import grid
from vivace.envs.registry import make
from vivace.eval.bench import is_met
from vivace.eval.latency_model import ConstantLatency, LatencyModel, MeasuredLatency, NoLatency
from vivace.eval.machine import command as command_line
from vivace.eval.machine import machine, versions
from vivace.eval.output import output_folder, read_json, write_json
from vivace.eval.plans import load, load_plan
from vivace.eval.report import write_report
from vivace.eval.rollout import EpisodeResult, RolloutSettings, rollout
from vivace.eval.settings import EvalCommand, ReportCommand
from vivace.eval.statistics import paired_difference, percentiles, wilson_interval
from vivace.eval.timing import interleaved
from vivace.eval.trace import write_trace
from vivace.policies.session import Session
