"""The service without its protocols: what builds it, what answers, and what `/metrics` reports."""

from lengthwise.serving.service import Serving

__all__ = ["Serving"]
