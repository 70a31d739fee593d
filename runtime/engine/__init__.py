"""Engines behind one face: onnxruntime, TensorRT."""
