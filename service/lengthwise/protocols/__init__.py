"""What callers say and are told: /predict, KServe's v1 and v2, and gRPC, over one call."""
