"""Feature maps: x [b, h, n, d] to phi(x) [b, h, n, f], so that phi(q) . phi(k) stands for exp(q . k).

Each says its paper, whether it is positive (positive maps cannot have a normaliser near zero) and
what of a row it depends on. All but those that say so map each token by itself, so they are causal.
The dtype of x is kept; sums and exponentials are taken in f32 where x is narrower. Weights are
values that the caller brings, of shape [h, d, f] (one matrix a head) or [d, f] (one for all).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ...ir import OPS, IRError, Value
from ...ir.attributes import Slot
from ...ir.dims import Dim, ceildiv
from ...ir.ops import activation
from ...ir.ops import elementwise as e
from ...ir.ops import shape as s
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.index import arange
from ...ir.ops.linear import matmul
from ...ir.ops.nonlinear import clamp
from ...ir.ops.random import randn
from ...ir.ops.reduce import amax, mean, sum_
from ...ir.types import DType, f32, i64
from ..masks import over_keys

LOWEST = -1e30
"""Below every score; finite, so that differences of two are no NaN."""

MAX_FEATURES = 10_000
"""More features than this a head are refused: the state alone would be larger than many key caches."""


# ---- maps without weights ------------------------------------------------------------------------


def identity(x: Value) -> Value:
    """phi(x) = x; signed. InLine attention (arXiv:2412.06590), lightning attention."""
    return x


def relu(x: Value) -> Value:
    """phi(x) = max(x, 0); not negative, and zero rows are possible. SLAB (arXiv:2405.11582)."""
    return e.relu(x)


def elu1(x: Value) -> Value:
    """phi(x) = elu(x) + 1: exp(x) below zero, x + 1 above; positive (arXiv:2006.16236)."""
    return e.relu(x) + e.exp(e.minimum(x, 0.0))


def silu(x: Value) -> Value:
    """phi(x) = x sigmoid(x); signed, above -0.28. TransNormerLLM (arXiv:2307.14995)."""
    return activation.silu(x)


def softmax(x: Value) -> Value:
    """phi(x) = exp(x_f) / sum_f exp(x_f); positive. Efficient attention (arXiv:1812.01243), Liger."""
    return activation.softmax(x, dim=3)


def exponential(x: Value, *, shift: str = "none", padding: Value | None = None) -> Value:
    """phi(x) = exp(x - shift); positive.

    A factor that a whole row of queries shares, or that all keys share, cancels in a normalised sum:
    shift="row" takes off the greatest feature of each token (queries), "all" the greatest of all
    tokens (keys both ways: each then depends on every key), "none" nothing (causal keys).
    padding: bool [b or 1, 1, 1, n], True for tokens that "all" looks at.
    """
    return as_dtype(e.exp(_shifted(wide(x), shift, padding)), x.dtype)


def _shifted(x: Value, shift: str, padding: Value | None) -> Value:
    """x less its greatest entry over features, or over features and tokens, or x."""
    if shift == "none":
        return x
    if shift == "row":
        return x - e.detach(amax(x, dim=(3,), keepdim=True))
    if shift != "all":
        raise IRError(f"shift={shift!r}: it is 'row', 'all' or 'none'")
    seen = x if padding is None else e.where(over_keys(padding, x.shape[0], x.shape[2]), x, LOWEST)
    return x - e.detach(amax(seen, dim=(2, 3), keepdim=True))


PLAIN: dict[str, Callable[[Value], Value]] = {
    "identity": identity, "relu": relu, "elu1": elu1, "silu": silu, "softmax": softmax,
}  # fmt: skip
"""The maps that need nothing but x, by name."""


# ---- learned maps --------------------------------------------------------------------------------


def learned(x: Value, w: Value, b: Value | None = None) -> Value:
    """phi(x) = x w + b; signed. w [h, d, f] or [d, f], b broadcast to [b, h, n, f]."""
    y = matmul(wide(x), as_dtype(w, wide(x).dtype))
    return as_dtype(y if b is None else y + as_dtype(b, y.dtype), x.dtype)


def hedgehog(x: Value, w: Value) -> Value:
    """phi(x) = [softmax(x w), softmax(-x w)], 2f features, none below 1e-12. LoLCATs (arXiv:2410.10254).

    Two softmaxes, each over its own half: not the function of `hedgehog_joint`.
    """
    y = wide(learned(x, w))
    both = s.cat(activation.softmax(y, dim=3), activation.softmax(-y, dim=3), dim=3)
    return as_dtype(e.maximum(both, 1e-12), x.dtype)


def hedgehog_joint(x: Value, w: Value, b: Value | None = None) -> Value:
    """phi(x) = softmax([y, -y]) with y = 2 (x w + b), one softmax over 2f features; positive.

    Hedgehog (arXiv:2402.04347) as flash-linear-attention has it; there w starts as the identity.
    """
    y = wide(learned(x, w, b)) * 2.0
    return as_dtype(activation.softmax(s.cat(y, -y, dim=3), dim=3), x.dtype)


# ---- random maps ---------------------------------------------------------------------------------


def orthogonal(count: int, d: int, *, dtype: DType = f32, gaussian: bool = True, key: int = 1) -> Value:
    """Random directions [d, count], orthogonal in blocks of d, to start a fixed weight from.

    Each has the length of a Gaussian vector (gaussian=True) or sqrt(d). Performers (arXiv:2009.14794).
    Drawn where a weight gets its first value, from the seed that its name gives; `key` tells two apart.
    """
    many = ceildiv(count, d)
    normal = randn(size=(many, d, d), dtype=f32, key=key)
    types = (normal.type, normal.type)
    q, r = OPS["opaque"](normal, target="aten.linalg_qr.default", args=(Slot(0),), types=types)
    sign = e.sign(s.diagonal(r, offset=0, dim1=1, dim2=2))  # without it Q is not uniform
    rows = s.reshape(s.permute(q * s.reshape(sign, shape=(many, 1, d)), dims=(0, 2, 1)), shape=(many * d, d))
    rows = s.slice_(rows, dim=0, start=0, end=count)
    if gaussian:
        other = randn(size=(count, d), dtype=f32, key=key + 1)
        rows = rows * e.sqrt(sum_(other * other, dim=(1,), keepdim=True))
    else:
        rows = rows * math.sqrt(d)
    return as_dtype(s.permute(rows, dims=(1, 0)), dtype)


def favor(x: Value, w: Value, *, scale: float, shift: str = "none", eps: float = 1e-6,
          padding: Value | None = None) -> Value:  # fmt: skip
    """phi(x) = m^-1/2 (exp(w^T x' - |x'|^2 / 2 - shift) + eps), x' = x sqrt(scale); positive.

    Its expectation over w is the softmax kernel exp(scale q . k). FAVOR+ (arXiv:2009.14794). w [d, m] or
    [h, d, m], from `orthogonal`. shift: see `exponential`; "row" for queries. With eps the shift of
    keys no longer cancels, so causal keys take "none": an exponent is at most |w|^2 / 2.
    """
    y = wide(x) * math.sqrt(scale)
    lift = matmul(y, as_dtype(w, y.dtype)) - sum_(y * y, dim=(3,), keepdim=True) * 0.5
    features = e.exp(_shifted(lift, shift, padding)) + eps
    return as_dtype(features * _width(w) ** -0.5, x.dtype)


def rectified(x: Value, w: Value, *, eps: float = 0.0) -> Value:
    """phi(x) = relu(x w) / sqrt(m) + eps; not negative. Performers' generalised map, WERSA.

    WERSA divides x by a learned bandwidth first, and draws another w for keys than for queries.
    """
    y = matmul(wide(x), as_dtype(w, wide(x).dtype))
    y = e.relu(y) * _width(w) ** -0.5
    return as_dtype(y + eps if eps else y, x.dtype)


def _width(w: Value) -> int:
    width = w.shape[-1]
    if not isinstance(width, int) or width < 1:
        raise IRError(f"w is {w.type}: the number of its columns has to be known")
    return width


# ---- polynomials of the score --------------------------------------------------------------------


def powers(x: Value, degree: int) -> list[Value]:
    """For m = 0 .. degree all monomials of degree m, packed: <phi_m(q), phi_m(k)> = (q . k)^m / m!.

    The monomial prod x_i^a_i has the weight prod (a_i!)^-1/2; there are C(d + m - 1, m) of degree m.
    Raises IRError where all together are more than MAX_FEATURES.
    """
    d = x.shape[3]
    if not isinstance(d, int) or degree < 0 or math.comb(d + degree, degree) > MAX_FEATURES:
        count = math.comb(d + degree, degree) if isinstance(d, int) and degree >= 0 else "unknown many"
        raise IRError(f"degree {degree} of {d} features makes {count}; {MAX_FEATURES} at most")
    one = s.expand(OPS["const"](value=1.0, dtype=x.dtype), size=(*x.shape[:3], 1))
    if degree <= 2:
        return [one, x, _pairs(x)][: degree + 1]
    found = _powers_of_one(one, s.slice_(x, dim=3, start=0, end=1), degree)
    for i in range(1, d):
        step = _powers_of_one(one, s.slice_(x, dim=3, start=i, end=i + 1), degree)
        found = [
            s.cat(found[m], *(found[m - a] * step[a] for a in range(1, m + 1)), dim=3)
            for m in range(degree + 1)
        ]
    return found


def _powers_of_one(one: Value, x: Value, degree: int) -> list[Value]:
    """x^a / sqrt(a!) for a = 0 .. degree."""
    found = [one]
    for a in range(1, degree + 1):
        found.append(found[-1] * x * a**-0.5)
    return found


def _pairs(x: Value) -> Value:
    """x_i x_j for i < j and x_i^2 / sqrt(2), d (d + 1) / 2 features: each pair once, as x times x turned."""
    d = x.shape[3]
    squares = x * x * 0.5**0.5
    half, b, h, n = d // 2, *x.shape[:3]
    if half == 0:
        return squares
    ring = s.cat(s.slice_(x, dim=3, start=1, end=d), s.slice_(x, dim=3, start=0, end=half), dim=3)
    turned = s.unfold(ring, dimension=3, size=d, step=1)  # [b, h, n, half, d], turned by 1 .. half
    products = s.reshape(turned * s.reshape(x, shape=(b, h, n, 1, d)), shape=(b, h, n, half * d))
    count = d * (d - 1) // 2  # for even d turning by d / 2 meets each pair twice
    return s.cat(squares, s.slice_(products, dim=3, start=0, end=count), dim=3)


def taylor(x: Value, *, order: int = 2, scale: float) -> Value:
    """<phi(q), phi(k)> = sum_{m <= order} (scale q . k)^m / m!, packed; positive for an even order.

    Order 2 is Based (arXiv:2402.18668), which has scale = d^-1/2: [1, x', pairs of x'], x' = x sqrt(scale),
    1 + d + d (d + 1) / 2 features. Good while |scale q . k| stays below about one: see `taylor_error`.
    """
    y = wide(x) * math.sqrt(scale)
    return as_dtype(s.cat(*powers(y, order), dim=3), x.dtype)


def taylor_error(bound: float, order: int) -> float:
    """The greatest relative error of the Taylor polynomial of exp where |x| <= bound."""

    def at(x: float) -> float:
        return abs(sum(x**m / math.factorial(m) for m in range(order + 1)) * math.exp(-x) - 1)

    return max(at(bound), at(-bound))


def polynomial(x: Value, *, order: int, scale: float, limit: float, tolerance: float = 0.1) -> Value:
    """`taylor` of x with its entries kept within +-limit, so that |scale q . k| <= scale d limit^2.

    The polynomial method for bounded entries (arXiv:2302.13214). Raises IRError where that bound
    lets the relative error of a weight exceed `tolerance`.
    """
    d = x.shape[3]
    bound = scale * limit * limit * (d if isinstance(d, int) else math.inf)
    error = taylor_error(bound, order) if math.isfinite(bound) and bound < 700 else math.inf
    if not error <= tolerance:
        raise IRError(
            f"entries within {limit:g} let scores reach {bound:.3g}, where order {order} is off by "
            f"{error:.1%}, more than {tolerance:.1%}: a smaller limit or a higher order is needed"
        )
    return taylor(clamp(x, min=-limit, max=limit), order=order, scale=scale)


# ---- positions and hashes ------------------------------------------------------------------------


def cosine(x: Value, *, length: Dim, start: Dim = 0) -> Value:
    """phi(x_i) = relu(x_i) [cos a_i, sin a_i], a_i = pi i / (2 length), i from start + 1; not negative.

    cosFormer (arXiv:2202.08791): weights q . k cos(a_i - a_j). There length is max(n, m), so a longer
    input changes earlier outputs; with a fixed `length` it does not, and places beyond it count as the
    last: cos would fall below 0.
    """
    y, n = e.relu(wide(x)), x.shape[2]
    if isinstance(length, int) and isinstance(n, int) and isinstance(start, int) and length < start + n:
        raise IRError(f"positions reach {start + n}, beyond length={length}")
    if isinstance(length, int):
        total: Value | float = float(length)
    else:
        total = as_dtype(OPS["size"](value=length, dtype=i64), y.dtype)
    place = as_dtype(arange(start=start + 1, end=n + start + 1, dtype=i64), y.dtype)
    angle = s.reshape(e.minimum(place, total) * (math.pi / 2) / total, shape=(n, 1))
    return as_dtype(s.cat(y * e.cos(angle), y * e.sin(angle), dim=3), x.dtype)


def codes(x: Value, anchors: Value, mean_kernel: Value, w: Value, *, width: Value | None = None,
          padding: Value | None = None) -> Value:  # fmt: skip
    """EcoFormer's binary codes sign((exp(-|u - a|^2 / 2 width) - mean_kernel) w), u = x / |x|; signed.

    anchors [h, m, d] or [m, d], mean_kernel broadcast to [b, h, n, m], w [h, m, f] or [m, f]
    (arXiv:2209.09004).
    width: [.., 1, 1]; by default the mean of |u - a|^2 over tokens and anchors, as in the paper, and
    then each code depends on all tokens (all that `padding` keeps). The gradient passes straight
    through where the argument of sign lies within +-1. c . c' lies in [-f, f]: add f + 1 for weights >= 1.
    """
    y = wide(x)
    u = y * e.rsqrt(e.maximum(sum_(y * y, dim=(3,), keepdim=True), 1e-24))
    a = as_dtype(anchors, y.dtype)
    flat = s.permute(a, dims=(*range(a.rank - 2), a.rank - 1, a.rank - 2))  # [.., d, m]
    distance = 1.0 - matmul(u, flat) * 2.0 + sum_(flat * flat, dim=(a.rank - 2,), keepdim=True)
    if width is not None:
        width = as_dtype(width, y.dtype)
    elif padding is None:
        width = mean(distance, dim=(2, 3), keepdim=True)
    else:
        keep = over_keys(padding, x.shape[0], x.shape[2])
        count = sum_(e.cast(keep, dtype=y.dtype), dim=(2, 3), keepdim=True)
        total = sum_(e.where(keep, distance, 0.0), dim=(2, 3), keepdim=True)
        width = total / (e.maximum(count, 1.0) * float(_width(flat)))
    kernel = e.exp(distance * -0.5 / width) - as_dtype(mean_kernel, y.dtype)
    z = matmul(kernel, as_dtype(w, y.dtype))
    through = clamp(z, min=-1.0, max=1.0)
    return as_dtype(e.sign(z) + (through - e.detach(through)), x.dtype)
