"""One module for each family of operators, with a rule for each operator (`mending.engine.Rule`).

A rule's function writes the nodes that stand for a node in the mended graph, and returns what is known of its outputs.
"""
