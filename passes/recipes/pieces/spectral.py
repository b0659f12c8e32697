"""The Haar transform along the tokens, and filters of its levels (WERSA)."""

from __future__ import annotations

from collections.abc import Sequence

from ....ir import IRError, Value
from ....ir.dims import Dim, ceildiv
from ....ir.ops.activation import as_dtype, wide
from ....ir.ops.shape import cat, reshape, slice_
from .parts import zeros


def haar(x: Value, levels: int) -> list[Value]:
    """The Haar coefficients of x [b, h, n, d] along n: details of level 1, 2, ..., and the coarsest means.

    Pairs become (even + odd) / sqrt 2 and (even - odd) / sqrt 2, orthonormal. Zeros are appended until
    2^levels divides n; more of them would only append zero coefficients. Both ways: not causal.
    """
    if levels < 0:
        raise IRError(f"levels={levels} is negative")
    b, h, n, d = x.shape
    full = ceildiv(n, 2**levels) * 2**levels
    x, found = cat(x, zeros(x.dtype, b, h, full - n, d), dim=2), []
    for _ in range(levels):
        half = x.shape[2] // 2
        pairs = reshape(x, shape=(b, h, half, 2 * d))
        even, odd = slice_(pairs, dim=3, start=0, end=d), slice_(pairs, dim=3, start=d, end=2 * d)
        found.append((even - odd) * 0.5**0.5)
        x = (even + odd) * 0.5**0.5
    return [*found, x]


def unhaar(coefficients: Sequence[Value], n: Dim) -> Value:
    """The first n tokens of what `haar` took apart, [b, h, n, d]."""
    *details, x = coefficients
    for detail in reversed(details):
        b, h, half, d = x.shape
        pairs = cat((x + detail) * 0.5**0.5, (x - detail) * 0.5**0.5, dim=3)
        x = reshape(pairs, shape=(b, h, 2 * half, d))
    return slice_(x, dim=2, start=0, end=n)


def filtered(x: Value, gains: Value, levels: int) -> Value:
    """x [b, h, n, d] with the coefficients of its Haar levels multiplied by gains [b, h or 1, n, levels + 1].

    Column i scales level i + 1, the last column the coarsest means. A coefficient takes the gain of
    the first token it covers. WERSA (arXiv:2507.08637) resamples the gains to the nearest token: the same
    where n is a power of two.
    """
    n, y, scale = x.shape[2], wide(x), wide(gains)
    b, one, _, many = gains.shape
    if many != levels + 1:
        raise IRError(f"gains are {gains.type}: {levels} levels have {levels + 1} gains")
    full = ceildiv(n, 2**levels) * 2**levels
    scale = cat(scale, zeros(scale.dtype, b, one, full - n, many), dim=2)
    found = []
    for i, part in enumerate(haar(y, levels)):
        gain = slice_(scale, dim=3, start=i, end=i + 1)
        found.append(part * slice_(gain, dim=2, start=0, end=full, step=2 ** min(i + 1, levels)))
    return as_dtype(unhaar(found, n), x.dtype)
