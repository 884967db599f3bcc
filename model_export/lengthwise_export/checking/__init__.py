"""Checks whether padding or another row changes an answer, and finds the operator at which a leak begins."""
