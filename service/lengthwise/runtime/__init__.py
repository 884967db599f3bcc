"""Runs one graph: its manifest, its session on a device, its recurrent kernels, and answers from its outputs."""
