"""Sums over keys with weights phi(q) . phi(k), and what every head's weights start from."""

from __future__ import annotations

from ....ir import OPS, Value
from ....ir.dims import Dim
from ....ir.ops.activation import wide
from ....ir.ops.attention import swap
from ....ir.ops.index import eye
from ....ir.ops.linear import matmul
from ....ir.ops.linear_attention import linear_attention
from ....ir.ops.random import rand
from ....ir.ops.shape import cat, expand, reshape, slice_
from ....ir.types import DType, f32
from ..recipe import Mixing
from .parts import ones


def recurrence(
    site: Mixing, q: Value, k: Value, v: Value, decay: Value | None = None, beta: Value | None = None, *,
    causal: bool, normalize: bool = False, eps: float = 0.0,
) -> Value:  # fmt: skip
    """`linear_attention` at a site, anew for each of several sequences that are packed in a row.

    Where there are more keys than queries and it is causal, the first keys, such as a learned prefix, are
    before all queries: their sum is the state to start from.
    """
    state, past = None, k.shape[2] - q.shape[2]
    if causal and past != 0 and decay is None and beta is None:
        h, g = q.shape[1], k.shape[1]
        before, k = _parted(k, past)
        there, v = _parted(v, past)
        if normalize:
            there = cat(there, expand(ones(there, None), size=(*there.shape[:3], 1)), dim=3)
        state = matmul(swap(wide(before)), wide(there))
        (b, _, d, e) = state.shape
        state = expand(reshape(state, shape=(b, g, 1, d, e)), size=(b, g, h // g, d, e))
        state = reshape(state, shape=(b, h, d, e))
    rest = dict(causal=causal, normalize=normalize, eps=eps)
    return linear_attention(q, k, v, decay, beta, state, site.segments(q.shape[0]), **rest)


def _parted(x: Value, at: Dim) -> tuple[Value, Value]:
    """The first `at` tokens of x [b, h, n, d], and the others."""
    return slice_(x, dim=2, start=0, end=at), slice_(x, dim=2, start=at, end=x.shape[2])


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
