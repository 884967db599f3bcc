"""A client of the service: sequences of a Python program to requests, and their answers to predictions.

Nothing here runs a model, and onnxruntime is not imported. httpx comes with the extra `client`.
"""
