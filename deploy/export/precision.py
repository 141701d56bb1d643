"""Graphs at lower precision, by ONNX Runtime's own tools; inputs and outputs stay float32."""

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


def reduced(file: Path, precision: str) -> Any:
    """Return the ONNX model of a file at another precision than float32.

    From file to file, for what protobuf writes at once has at most 2 GB.

    Args:
        file: of the model; its folder is written into.
        precision: fp16 or int8.
    """
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        return convert_float_to_float16(str(file), keep_io_types=True)
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    written = file.with_name("int8.onnx")
    quantize_dynamic(
        file,
        written,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )
    return onnx.load(written)
