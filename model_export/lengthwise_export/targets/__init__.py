"""Loads a TARGET: a spec, a checkpoint, a torch module, a Keras model, an ONNX file or a model directory."""
