"""One graph, ready to run: its manifest, its session on a device, its kernels and its answers."""
