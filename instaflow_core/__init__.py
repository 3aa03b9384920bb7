"""InstaFlow without a host: the flow, its solvers, checkpoints and training (arXiv 2309.06380)."""
