"""What an attention mask is, proved from the graph that computes it. Unknown means no."""

from .mask import AS_GOOD_AS_INFINITE, NEGLIGIBLE, PARTS, Mask, over_keys, uniform
from .walk import affine, classify, classify_op, simplify

__all__ = [
    "AS_GOOD_AS_INFINITE", "NEGLIGIBLE", "PARTS", "Mask", "affine", "classify", "classify_op", "over_keys",
    "simplify", "uniform",
]  # fmt: skip
