"""Verification: does a graph give a sequence the same answer, whatever it is batched with and however it is padded?

1. `measurement` measures cases. Each varies one thing that must not matter; `random_sequences` draws the sequences.
2. `promises` evaluates the cases, and derives the promise for one device (the same bits, or a tolerance).
3. The exporter does both before it publishes a model. The manifest has the promise, `verification.json` the cases.
4. At every load, `golden` runs a few stored sequences again and compares them with their stored logits and the promise.
5. On a device without a promise the service does 1 and 2 itself, and `promises` stores the result.
"""
