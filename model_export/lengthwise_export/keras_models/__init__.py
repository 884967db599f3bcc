"""Keras models: reads their files, and runs them as torch modules that take lengths instead of a computed mask."""
