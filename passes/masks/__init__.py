"""What an attention mask is, proved from the graph that computes it. Unknown means no.

mask -> element.py: one element as a formula over its indices (terms.py, arithmetic.py)
     -> factors.py: what is kept, a conjunction; what is added, a sum
     -> naming.py, added.py: each part by its name, with what it needs as values again (build.py)
"""

from .affine import affine
from .counterexample import counterexample
from .mask import AS_GOOD_AS_INFINITE, NEGLIGIBLE, PARTS, Mask, over_keys, overflows, uniform
from .naming import classify, classify_op
from .simplify import simplify

__all__ = [
    "AS_GOOD_AS_INFINITE", "NEGLIGIBLE", "PARTS", "Mask", "affine", "classify", "classify_op",
    "counterexample", "over_keys", "overflows", "simplify", "uniform",
]  # fmt: skip
