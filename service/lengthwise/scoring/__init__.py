"""`lengthwise score`: predicts a file of sequences, and writes what `/predict` would answer. Begin with `command`."""
