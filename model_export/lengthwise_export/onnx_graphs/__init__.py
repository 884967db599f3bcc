"""Reads, runs and converts ONNX graphs."""
