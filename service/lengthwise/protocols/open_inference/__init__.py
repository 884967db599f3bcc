"""The Open Inference Protocol's messages: `open_inference.proto`, and what `make proto` generates of it."""
