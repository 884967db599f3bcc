"""Summaries of sequences, and classifiers of scikit-learn on them, as one graph."""
