"""Graphs at lower precision, by ONNX Runtime's own tools; inputs and outputs stay float32."""

import tempfile
from pathlib import Path
from typing import Any

from vivace.deploy.inference.ort_graph import BF16, check_bf16
from vivace.policies.errors import BadSetting

PRECISIONS = ("fp32", "fp16", "int8", BF16)
"""fp16: weights and arithmetic in float16. int8: weights of matrix products in int8, a scale per channel;
their other side is quantised as it comes (dynamic quantisation). bf16: the graphs of fp32, run in bfloat16
by OpenVINO."""


def stored(precision: str) -> str:
    """Precision that graphs are written in, to be run in another."""
    return "fp32" if precision == BF16 else precision


def check_precision(precision: str) -> None:
    """Raise `BadSetting` unless the precision is known."""
    if precision == BF16:
        check_bf16()  # its error must be measured
    if precision not in PRECISIONS:
        raise BadSetting(f"export.precision={precision!r}; choose one of {', '.join(PRECISIONS)}")


def reduced(model: Any, precision: str) -> Any:
    """Return an ONNX model at another precision than float32."""
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        return convert_float_to_float16(model, keep_io_types=True)
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            file,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(file)
