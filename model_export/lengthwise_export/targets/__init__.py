"""What a TARGET is: a spec, a torch module, an ONNX file or a model directory."""
