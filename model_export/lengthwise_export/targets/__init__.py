"""Loads a TARGET: a spec, a checkpoint, a torch module, an ONNX file or a model directory."""
