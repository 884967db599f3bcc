"""Decides which sequences run together, when, and in which thread. It imports neither onnxruntime nor a protocol."""
