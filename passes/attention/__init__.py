"""Softmax attention recognised by meaning, from its softmax outward, whatever its spelling.

The search starts at a softmax and walks both ways: up through scales, soft-caps and masks to the
product of queries and keys, down through casts and views to the product with the values. On the way
it keeps track of axes by meaning (`axes.py`), so that layouts, folded heads and repeated heads need
no cases of their own. What stops it is a refusal with its reason.
"""

from .axes import transposed
from .normaliser import softmaxes
from .raising import attention
from .recognise import Attention, examine
from .simplify import simplified

__all__ = ["Attention", "attention", "examine", "simplified", "softmaxes", "transposed"]
