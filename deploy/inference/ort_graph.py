"""One ONNX graph, loaded, and calls of it that are bound to their buffers once."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.form import Graph
from vivace.deploy.system.realtime import allowed_cpus
from vivace.policies.backports import Self
from vivace.policies.errors import BadBundle, BadSetting

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
"""Name -> ONNX Runtime's."""
BF16 = "bf16"
_BF16_FLAGS = ("avx512_bf16", "amx_bf16")
READ = ("out", "actions", "logits")
"""Outputs that numpy reads; all others stay on the device."""
_TYPES = {
    "float": np.float32,
    "float16": np.float16,
    "double": np.float64,
    "int64": np.int64,
    "int32": np.int32,
    "uint8": np.uint8,
    "bool": np.bool_,
}
"""ONNX Runtime's name of a tensor's type -> numpy's, which has no bfloat16: that stays inside a graph."""


_SPIN_US = 200
"""How long a graph's idle threads spin [us]: those of many graphs that are being loaded took each other's
cores for as long as ONNX Runtime lets them by default. Releases that do not know this leave it out."""


OLDEST = (1, 20)
"""ONNX Runtime that bundles were seen to run on: 1.20.1 with numpy 1.26.4."""


def check_version(version: str) -> None:
    """Raise `BadSetting` if ONNX Runtime is older than any that bundles were seen to run on."""
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if found < OLDEST:
        raise BadSetting(
            f"onnxruntime {version} is installed; {'.'.join(map(str, OLDEST))} or newer is needed: "
            "pip install -U onnxruntime"
        )


def share_threads(threads: int | None) -> None:
    """Make the one pool of threads that all policies of this process share; before any of them is loaded.

    Only for a process that runs nothing else with ONNX Runtime: from then on every session must share it.

    Args:
        threads: how many; one for every core this process may use when None.
    """
    if not hasattr(ort, "set_global_thread_pool_sizes"):
        return  # before 1.23 Python could not say it: every graph has a pool of its own
    allowed = len(allowed_cpus()) or os.cpu_count()
    ort.set_global_thread_pool_sizes(threads or allowed or 1, 1)


@dataclass(frozen=True)
class Runtime:
    """Where graphs run."""

    providers: tuple[str, ...]
    """ONNX Runtime's names, first one first."""
    threads: int | None = None
    """Of one inference; ONNX Runtime's own choice when None."""
    shares_threads: bool = False
    """Graphs use the process's one pool of threads (`share_threads`), not one each."""
    precision: str = ""
    """"bf16": the arithmetic of OpenVINO; else that of the graphs."""

    def at(self, precision: str) -> Self:
        """Runtime for graphs of a precision; raises as `check_bf16`."""
        if precision != BF16:
            return self
        check_bf16()
        return replace(self, providers=(PROVIDERS["openvino"], PROVIDERS["cpu"]), precision=BF16)

    @classmethod
    def of(cls, providers: Sequence[str], threads: int | None, shares_threads: bool) -> Self:
        """Runtime with providers of these names; the CPU always stands behind them.

        Raises:
            BadSetting: this installation lacks a provider, or is too old.
        """
        check_version(ort.__version__)
        present = ort.get_available_providers()
        usable = [name for name, full in PROVIDERS.items() if full in present]
        for name in providers:
            if name not in usable:
                raise BadSetting(
                    f"execution provider {name!r} is not one of this ONNX Runtime's: {', '.join(usable)}; "
                    "install the build of onnxruntime for your device"
                )
        names = dict.fromkeys([*(PROVIDERS[name] for name in providers), PROVIDERS["cpu"]])
        return cls(tuple(names), threads, shares_threads)

    @property
    def is_exact(self) -> bool:
        """Whether numbers are computed as at export: other providers shorten float32 unless told not to."""
        return self.providers[0] == PROVIDERS["cpu"] or self.precision == BF16

    @property
    def device(self) -> str:
        """Where tensors stay between two graphs: cpu or cuda."""
        return "cuda" if self.providers[0] in (PROVIDERS["cuda"], PROVIDERS["tensorrt"]) else "cpu"

    def session(self, path: Path) -> ort.InferenceSession:
        """Load a graph.

        Raises:
            BadBundle: ONNX Runtime cannot.
            BadSetting: the provider that was asked for is not there after all; ONNX Runtime would go on
                without.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # the next graph needs the core
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
        shares_threads = self.shares_threads and hasattr(options, "use_per_session_threads")
        if shares_threads:
            options.use_per_session_threads = False
        if self.threads and not shares_threads:
            options.intra_op_num_threads = self.threads
        try:
            session = ort.InferenceSession(str(path), options, providers=self._providers())
        except Exception as error:  # ONNX Runtime raises its own kinds, without a common base
            raise BadBundle(f"{path} cannot be loaded ({_first_line(error)}); export it again") from error
        if self.providers[0] not in session.get_providers():
            raise BadSetting(
                f"execution provider {self.providers[0]} could not be started, ONNX Runtime took "
                f"{', '.join(session.get_providers())}; see its messages above, or ask for another provider"
            )
        return session

    def _providers(self) -> list[Any]:
        """Providers as ONNX Runtime takes them.

        CUDA multiplies float32 as it is, not shortened to TF32; TensorRT keeps the engines it builds, which
        takes minutes, for the next start.
        """
        if self.precision != BF16:
            return [(name, _OPTIONS[name]()) if name in _OPTIONS else name for name in self.providers]
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": BF16, "PERFORMANCE_HINT": "LATENCY"}
        settings |= {"INFERENCE_NUM_THREADS": str(self.threads)} if self.threads else {}
        first = {"device_type": "CPU", "load_config": json.dumps({"CPU": settings})}
        return [(self.providers[0], first), *self.providers[1:]]


def _tensorrt_options() -> dict[str, str]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vivace" / "tensorrt"
    cache.mkdir(parents=True, exist_ok=True)
    return {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)}


_OPTIONS: Mapping[str, Callable[[], dict[str, str]]] = {
    PROVIDERS["cuda"]: lambda: {"use_tf32": "0"},
    PROVIDERS["tensorrt"]: _tensorrt_options,
}
"""What providers are told."""


def check_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Raise `BadSetting` unless this ONNX Runtime and this processor compute in bfloat16.

    Its own CPU provider has no bfloat16 kernels for matrix products, OpenVINO's has.
    """
    if PROVIDERS["openvino"] not in ort.get_available_providers():
        raise BadSetting(
            f"bf16 needs OpenVINO, which this ONNX Runtime ({ort.__version__}) is built without; install "
            "onnxruntime-openvino in the place of onnxruntime, or choose fp32"
        )
    found = cpuinfo.read_text() if cpuinfo.is_file() else ""
    if not any(flag in found.split() for flag in _BF16_FLAGS):
        raise BadSetting(
            f"bf16 needs a processor with {' or '.join(_BF16_FLAGS)}, which {cpuinfo} does not name; choose "
            "fp32"
        )


@dataclass(frozen=True)
class Buffer:
    """Memory that graphs read and write; on the host numpy's."""

    value: ort.OrtValue
    array: np.ndarray | None
    """The same memory; None: it is the device's."""

    @classmethod
    def of(cls, array: np.ndarray) -> Self:
        """Buffer that is an array's memory."""
        array = np.require(array, requirements="C")
        return cls(ort.OrtValue.ortvalue_from_numpy(array), array)

    @classmethod
    def on(cls, device: str, array: np.ndarray) -> Self:
        """Buffer on a device, with an array's values; the host's is the array's own memory."""
        if device == "cpu":
            return cls.of(array)
        return cls(ort.OrtValue.ortvalue_from_numpy(np.require(array, requirements="C"), device, 0), None)

    @property
    def host(self) -> np.ndarray:
        """The array; the buffer must be the host's."""
        assert self.array is not None
        return self.array


class Call:
    """A call of a graph on buffers of its own: it reads what they hold, and allocates nothing.

    Args:
        run: what it does.
        inputs: name -> buffer.
        outputs: name -> buffer.
    """

    def __init__(
        self, run: Callable[[], None], inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]
    ) -> None:
        self._run, self.inputs, self.outputs = run, inputs, outputs

    def __call__(self, given: Mapping[str, np.ndarray]) -> Mapping[str, Buffer]:
        """Write arrays into the inputs of these names, run, return the outputs.

        Names that the graph does not read are passed over.

        Raises:
            BadBundle: an array has another shape than the graph reads, or ONNX Runtime cannot run it.
        """
        for name, value in given.items():
            if name in self.inputs:
                place = self.inputs[name].host
                fits = value.shape == place.shape and np.can_cast(value.dtype, place.dtype, "same_kind")
                if not fits:  # numpy would broadcast it
                    raise BadBundle(
                        f"{name} is {value.dtype} of shape {value.shape}, its graph reads {place.dtype} of "
                        f"{place.shape}; export it again"
                    )
                np.copyto(place, value)
        self._run()
        return self.outputs


class OrtGraph:
    """One graph, loaded.

    Args:
        path: of the file.
        declared: its inputs and outputs, as the manifest says.
        runtime: where it runs.

    Raises:
        BadBundle: it cannot be loaded, or has other inputs or outputs.
    """

    def __init__(self, path: Path, declared: Graph, runtime: Runtime) -> None:
        self._path = path
        self._session, self.device = runtime.session(path), runtime.device
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._outputs = {value.name: value for value in self._session.get_outputs()}
        for kind, wanted, found in (
            ("input", declared.inputs, self._inputs),
            ("output", declared.outputs, self._outputs),
        ):
            unknown = [value.type for value in found.values() if _plain_type(value) not in _TYPES]
            if unknown:
                raise BadBundle(f"{path} has an {kind} of {unknown[0]}, which is not read; export it again")
            shapes = {name: _shape(value, -1) for name, value in found.items()}
            if shapes != dict(wanted):
                raise BadBundle(
                    f"{path} has {kind}s {shapes}, the manifest says {dict(wanted)}; export it again"
                )

    def bind(
        self,
        given: Mapping[str, Buffer],
        into: Mapping[str, Buffer] | None = None,
        length: int | None = None,
    ) -> Call:
        """Bind a call.

        Args:
            given: name -> buffer of inputs that others write; those it lacks get buffers of the host.
            into: name -> buffer of outputs; those it lacks get buffers.
            length: of the dimensions that may have any.
        """
        inputs = {
            name: given[name] if name in given else self._host(value, length)
            for name, value in self._inputs.items()
        }
        outputs = {
            name: into[name] if into and name in into else self._buffer(name, value, length)
            for name, value in self._outputs.items()
        }
        binding = self._session.io_binding()
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, buffer.value)
        for name, buffer in outputs.items():
            binding.bind_ortvalue_output(name, buffer.value)

        def run() -> None:
            try:
                self._session.run_with_iobinding(binding)
            except Exception as error:  # ONNX Runtime raises its own kinds, without a common base
                raise BadBundle(f"{self._path} failed ({_first_line(error)}); export it again") from error

        return Call(run, inputs, outputs)

    def _buffer(self, name: str, value: Any, length: int | None) -> Buffer:
        """Return a buffer for an output."""
        if self.device == "cpu" or name in READ:
            return self._host(value, length)
        shape = _shape(value, length)
        return Buffer(ort.OrtValue.ortvalue_from_shape_and_type(shape, type_of(value), self.device), None)

    def _host(self, value: Any, length: int | None) -> Buffer:
        return Buffer.of(np.zeros(_shape(value, length), type_of(value)))


class Graphs:
    """Graphs that were loaded, each once, however many plans call it.

    Args:
        runtime: where they run.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._loaded: dict[tuple[Path, str], OrtGraph] = {}

    def runtime_of(self, bundle: Bundle) -> Runtime:
        """Return where graphs of a bundle's plan run."""
        return self.runtime.at(bundle.receipt.get("precision", ""))

    def load(self, bundle: Bundle, index: int) -> OrtGraph:
        """Return a graph of a bundle; raises as `OrtGraph`."""
        declared = bundle.graphs[index]
        path = bundle.path(declared.file)
        runtime = self.runtime_of(bundle)
        if (path, runtime.precision) not in self._loaded:
            self._loaded[path, runtime.precision] = OrtGraph(path, declared, runtime)
        return self._loaded[path, runtime.precision]


def _shape(value: Any, length: int | None) -> tuple[int, ...]:
    """Shape of a tensor, of a dimension that may have any length this one."""
    return tuple(n if isinstance(n, int) else length for n in value.shape)  # type: ignore[misc]


def type_of(value: Any) -> type:
    """Numpy's type of "tensor(…)"."""
    return _TYPES[_plain_type(value)]


def _plain_type(value: Any) -> str:
    found: str = value.type
    return found.removeprefix("tensor(").removesuffix(")")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
