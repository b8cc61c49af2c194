"""Checkpoints: from runs, from what others published, as ONNX graphs and in int8."""
