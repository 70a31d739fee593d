"""A checkpoint's modules become ONNX graphs."""
