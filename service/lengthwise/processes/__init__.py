"""The server process and its shutdown, and several workers with their parent."""
