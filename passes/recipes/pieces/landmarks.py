"""Few tokens that stand for many: segment means, attention weights to them, and their inverse."""

from __future__ import annotations

from ....ir import Value
from ....ir.dims import Dim
from ....ir.ops.activation import as_dtype, wide
from ....ir.ops.attention import grouped, swap
from ....ir.ops.elementwise import abs_, exp, gt, logical_and, where
from ....ir.ops.index import eye
from ....ir.ops.linear import matmul
from ....ir.ops.pool import adaptive_avg_pool1d
from ....ir.ops.reduce import amax, sum_
from ....ir.ops.shape import permute, reshape
from ..features import LOWEST
from .parts import kept, ones


def segment_means(x: Value, count: int, padding: Value | None = None) -> tuple[Value, Value | None]:
    """Means of x [b, h, n, d] over `count` segments [b, h, count, d], and which of them have a token.

    Segment i is the tokens from i n // count up to -(-(i + 1) n // count): equal where count divides n,
    sharing a token with a neighbour elsewhere, never empty. padding: bool [b or 1, 1, 1, n]; padded
    tokens are left out of the means, and the second result is bool [b, 1, 1, count], False where a
    segment is all padding (its mean is 0). Without padding it is None.
    """
    if padding is None:
        return as_dtype(_pooled(wide(x), count), x.dtype), None
    y = wide(x)
    share = _pooled(ones(y, padding), count)  # [b, 1, count, 1]
    some = gt(share, 0.0)
    means = _pooled(kept(y, padding), count) / where(some, share, 1.0)
    return as_dtype(means, x.dtype), reshape(some, shape=(x.shape[0], 1, 1, count))


def _pooled(x: Value, count: Dim) -> Value:
    b, h, n, d = x.shape
    flat = reshape(permute(x, dims=(0, 1, 3, 2)), shape=(b * h, d, n))
    y = adaptive_avg_pool1d(flat, output_size=(count,))
    return permute(reshape(y, shape=(b, h, d, count)), dims=(0, 1, 3, 2))


def affinity(q: Value, k: Value, *, scale: float, padding: Value | None = None) -> Value:
    """softmax(scale q k^T) [b, h, n, m], for few keys k [b, g, m, d]; f32 or f64.

    padding: bool [b or 1, 1, 1, m], True for keys that count; the others weigh 0, also where no key counts.
    """
    x, k = wide(q) * scale, kept(wide(k), padding)
    scores = reshape(matmul(grouped(x, k), swap(k)), shape=(*q.shape[:3], k.shape[2]))
    if padding is None:
        weights = exp(scores - amax(scores, dim=(3,), keepdim=True))
        return weights / sum_(weights, dim=(3,), keepdim=True)
    scores = where(padding, scores, LOWEST)
    weights = where(padding, exp(scores - amax(scores, dim=(3,), keepdim=True)), 0.0)
    total = sum_(weights, dim=(3,), keepdim=True)
    return weights / where(gt(total, 0.0), total, 1.0)


def pseudo_inverse(a: Value, *, iterations: int = 6, alive: Value | None = None) -> Value:
    """The Moore-Penrose inverse of square matrices a [..., m, m], by iteration; f32 or f64.

        Z0 = a^T / (|a|_1 |a|_inf),   Z <- Z (13 I - a Z (15 I - a Z (7 I - a Z))) / 4

    with norms of each matrix, so no matrix depends on another of the batch. The error falls with
    the third power once |I - a Z| < 1. Nystromformer (arXiv:2102.03902). alive: bool [b, 1, 1, m]; rows and
    columns of the others count as those of the identity.
    """
    a, m = wide(a), a.shape[-1]
    unit, last = eye(n=m, m=m, dtype=a.dtype), a.rank - 1
    if alive is not None:
        a = where(logical_and(alive, swap(alive)), a, unit)
    size = abs_(a)
    columns = amax(sum_(size, dim=(last - 1,), keepdim=True), dim=(last,), keepdim=True)
    rows = amax(sum_(size, dim=(last,), keepdim=True), dim=(last - 1,), keepdim=True)
    z = swap(a) / (columns * rows)
    for _ in range(iterations):
        az = matmul(a, z)
        inner = unit * 15.0 - matmul(az, unit * 7.0 - az)
        z = matmul(z, unit * 13.0 - matmul(az, inner)) * 0.25
    return z
