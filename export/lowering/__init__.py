"""Passes over ONNX graphs: what torch wrote becomes what engines run."""
