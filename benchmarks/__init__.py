"""The service beside its peers and beside what the machine could do at best: `python -m benchmarks.bench`."""
