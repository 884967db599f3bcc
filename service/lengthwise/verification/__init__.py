"""What proves a model: cases that must not change its answers, and golden sequences run again at every load."""
