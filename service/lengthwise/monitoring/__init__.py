"""What a service learns from what it answers: records, drift, checks of answers, and comparisons of versions."""
