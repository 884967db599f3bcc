"""The Open Inference Protocol over gRPC; its messages are `open_inference.proto`, and what `make proto` makes of it."""
