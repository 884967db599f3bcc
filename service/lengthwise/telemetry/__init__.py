"""What the service reports about itself: metrics, a log line for each call, traces."""
