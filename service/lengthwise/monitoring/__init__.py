"""What a service learns from the calls that it answers: records, drift, checks of answers, and comparisons of versions.

A *consumer* (`consumers.Consumer`) does one of these with a sample of the answered calls.
"""
