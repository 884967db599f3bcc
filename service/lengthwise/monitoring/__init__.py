"""What a service learns from the calls that it answers: records, and checks of answers.

A *consumer* (`consumers.Consumer`) does one of these with a sample of the answered calls.
"""
