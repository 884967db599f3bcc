"""Measures the service on a GPU: `python -m benchmarks.gpu`.

Four sections, each a module with `measure(stage, figures)`: `placement`, `parity`, `isolation` and `throughput`. Each
runs in a process of its own. They need NumPy, onnxruntime, orjson, pydantic and prometheus-client; torch, where it is
installed, brings CUDA's libraries and is one of the contenders.
"""
