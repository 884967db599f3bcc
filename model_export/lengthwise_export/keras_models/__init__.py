"""Keras models: reads their files, and runs them as torch modules that take lengths in the place of a computed mask."""
