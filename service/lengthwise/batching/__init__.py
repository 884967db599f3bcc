"""Which sequences run together, when, and in which thread. Knows neither onnxruntime nor any protocol."""
