"""Traces a torch module and builds its ONNX graph."""
