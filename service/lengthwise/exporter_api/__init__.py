"""What an exporter may know of the service: these modules, and those beside them that `ARCHITECTURE.md` names.

Each hands out names of several packages, which stay what they are inside. Nothing in the service imports it. Whoever
writes an exporter for another framework begins with `contract`, and shows with `verification` that the graph is right.

| module | for |
|---|---|
| `contract` | what a model promises to the service: its manifest, the inputs of its graph, its answers |
| `verification` | running a graph as the service does, and measuring that batches do not change answers |
| `graphs` | reading an ONNX graph, and what the service's kernels take |
| `data` | sequences and labels: from files, from tables, from Python |
| `commands` | commands and their options |
| `reports` | pages, and what notebooks show |
"""
