"""ONNX files: read, rewritten for our kernels, and tried."""
