"""Floor 1: pure functions on labels: components, seam edges, union-find, relabelling."""
