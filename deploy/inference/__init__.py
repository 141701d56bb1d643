"""A bundle run by numpy and ONNX Runtime."""
