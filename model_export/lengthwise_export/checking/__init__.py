"""Whether padding or a neighbour reaches an answer, and at which operator it begins."""
