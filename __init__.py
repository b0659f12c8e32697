"""subquad: make PyTorch models sub-quadratic, one checked graph rewrite at a time."""

__version__ = "0.1.0"
