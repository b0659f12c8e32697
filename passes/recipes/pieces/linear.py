"""Sums over keys with weights phi(q) . phi(k), and what every head's weights start from."""

from __future__ import annotations

from ....ir import OPS, Value
from ....ir.dims import Dim
from ....ir.ops.index import eye
from ....ir.ops.linear_attention import linear_attention
from ....ir.ops.random import rand
from ....ir.ops.shape import cat, expand, slice_
from ....ir.types import DType, f32
from ..recipe import Mixing
from .parts import ones


def recurrence(
    site: Mixing, q: Value, k: Value, v: Value, decay: Value | None = None, beta: Value | None = None, *,
    causal: bool, normalize: bool = False, eps: float = 0.0,
) -> Value:  # fmt: skip
    """`linear_attention` at a site, anew for each of several sequences that are packed in a row."""
    rest = dict(causal=causal, normalize=normalize, eps=eps)
    return linear_attention(q, k, v, decay, beta, None, site.segments(q.shape[0]), **rest)


def linear_sums(
    q: Value, k: Value, v: Value, *, causal: bool = False, padding: Value | None = None
) -> tuple[Value, Value]:
    """sum_j (q . k_j) v_j, [b, h, n, e], and sum_j q . k_j, [b, h, n, 1]; causal: over j <= i.

    q [b, h, n, f] and k [b, g, m, f] after their feature maps, k and v [b, g, m, e] zero at padded keys.
    """
    e = v.shape[3]
    v1 = cat(v, expand(ones(v, padding), size=(*v.shape[:3], 1)), dim=3)
    out = linear_attention(q, k, v1, causal=causal, normalize=False)
    return slice_(out, dim=3, start=0, end=e), slice_(out, dim=3, start=e, end=e + 1)


def identities(h: Dim, d: int, f: int, dtype: DType) -> Value:
    """[h, d, f], an identity for each head."""
    return expand(eye(n=d, m=f, dtype=dtype), size=(h, d, f))


def uniform(dtype: DType, *shape: int, within: float, key: int = 1) -> Value:
    """Uniform on +-within, to start a weight from; `key` tells two draws of one weight apart."""
    drawn = (rand(size=shape, dtype=f32, key=key) * 2.0 - 1.0) * within
    return drawn if dtype is f32 else OPS["cast"](drawn, dtype=dtype)
