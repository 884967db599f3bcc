"""A client of the service: sequences to requests, and answers to predictions; without onnxruntime."""
