"""What is told of the service: metrics, one log line a call, spans."""
