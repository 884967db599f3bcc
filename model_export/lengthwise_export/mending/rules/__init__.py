"""One module for each family of operators. A function marked `@rule("Op")` mends a node of that operator type.

A rule reads the inputs of `mender.node`, writes the nodes that stand for it in the mended graph, and sets the outputs,
each with a description of its axes. Where padding would reach the output, the rule also adds a text to `mender.causes`.
"""
