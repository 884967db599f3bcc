"""Other ways to serve the same graph, each as its users would write it. All read and answer what `/predict` does."""
