"""One module for each family of operators: how a node of it is mended."""
