"""From a torch module to a graph that takes its lengths."""
