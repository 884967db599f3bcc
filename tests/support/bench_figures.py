"""The figures of one load test, as `lengthwise bench` has them."""

from __future__ import annotations

from lengthwise.bench.figures import Figures, Latency

FIGURES = Figures(
    load="2 connections",
    offered_rate=None,
    seconds=2.0,
    requests_per_second=1234.4,
    sequences_per_second=2468.8,
    latency_ms=Latency(1.0, 2.0, 30.0, 400.0, 1.5, 500.0),
    answers={200: 10},
    unsent=0,
    unanswered=0,
    broken=0,
    wrong=0,
    padding_share=0.25,
    computed_padding_share=0.0,
    rows_per_batch=4.0,
    late_ms=0.1,
    client_core_share=0.5,
    client_us_per_request=20.0,
)
