"""What people call: the commands and the Python functions."""
