"""`lengthwise.Scorer` on engines, in an environment that has them: `make engines`."""
