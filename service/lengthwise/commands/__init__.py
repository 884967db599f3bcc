"""The command `lengthwise`: one module for each of its commands."""
