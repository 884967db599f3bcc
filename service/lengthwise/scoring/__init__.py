"""`lengthwise score`: a file of sequences in, the lines that `/predict` would answer out. Begin with `command`."""
