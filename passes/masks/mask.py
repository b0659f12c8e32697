"""What a mask is said to be, and the two questions every user of a mask asks about its values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...ir import Dim, Value
from ...ir.ops.shape import expand, reshape
from ...ir.types import DType, bf16, f16, f32

PARTS = (
    "causal", "window", "chunked", "prefix", "packed", "padding", "alibi", "relative", "bias",
)  # fmt: skip
"""What a mask can be made of, in the order in which `Mask.kind` joins them with "+"."""

NEGLIGIBLE = -100.0
"""A constant at or below this, added where another 0 is, masks: it leaves a weight of exp(-100)."""

AS_GOOD_AS_INFINITE = -1e30
"""Added to a score of any sane size, this leaves no weight beside a key that is kept."""


@dataclass(frozen=True)
class Mask:
    """What is kept of, and added to, the scores [b, h, n, m] of query i and key j.

    kind: its `parts` joined by "+"; "none" without any; "dense" when unproved, and then no other
    field but `causal`, `offset`, `window` of the op itself, `reason` and `at` says anything. A key is
    kept iff all of these hold:

    causal: j <= i + offset.
    window: |i + offset - j| < window. With `causal` only the past is left of it.
    chunk: (i + offset - starts[b]) // chunk == (j - starts[b]) // chunk; starts: i64 [b or 1], None
        for zeros.
    prefix: instead of all of the above, j < prefix (a Dim, or an integer Value [b or 1]) may hold.
    segments: integers, of queries [b or 1, n] and keys [b or 1, m], are equal.
    padding: bool [b or 1, 1, 1, m], True.

    Added is the sum of these, up to a number that is the same for all keys of a query:

    slopes: a float Value [h or 1], of ALiBi: slopes[h] * j, or with `symmetric`
        -slopes[h] * |i + offset - j|. positions: what stands for j, integer or float [b or 1, m], None
        for j itself.
    relative: float [b or 1, h or 1, n + m - 1], indexed by j - i + n - 1.
    bias: what remains, float, broadcastable to [b, h, n, m].

    hard: masked weights are exactly 0 wherever a row keeps any key. reason: why it is dense. at: the
    value to blame.
    """

    kind: str
    causal: bool = False
    offset: Dim = 0
    window: Dim | None = None
    chunk: Dim | None = None
    starts: Value | None = None
    prefix: Dim | Value | None = None
    segments: tuple[Value, Value] | None = None
    padding: Value | None = None
    slopes: Value | None = None
    positions: Value | None = None
    symmetric: bool = False
    relative: Value | None = None
    bias: Value | None = None
    hard: bool = True
    reason: str = ""
    at: Value | None = None

    @property
    def parts(self) -> frozenset[str]:
        """The parts of its kind; none of "none", {"dense"} of "dense"."""
        return frozenset(self.kind.split("+")) - {"none"}


def uniform(x: Value | None) -> float | None:
    """The one number every element of x is, when x is a constant or views of one."""
    while x is not None and x.op.name in ("expand", "reshape", "permute", "slice"):
        x = x.op.args[0]
    if x is None or x.op.name not in ("const", "full", "cast"):
        return None
    if x.op.name == "cast":
        inner = uniform(x.op.args[0])
        if inner is None or math.isnan(inner) or (math.isinf(inner) and not x.dtype.is_float):
            return None
        if x.dtype.kind == "b":
            return bool(inner)
        return float(inner) if x.dtype.is_float else int(inner) if x.dtype.kind in "ui" else inner
    number = x.number if x.op.name == "const" else x.op.attrs.get("fill_value")
    return number if isinstance(number, (bool, int, float)) else None


def overflows(number: float, dtype: DType) -> bool:
    """Whether a finite number becomes infinite when it is rounded to a float `dtype`."""
    return math.isfinite(number) and abs(number) >= _TOO_LARGE.get(dtype, math.inf)


_TOO_LARGE = {f16: 65520.0, bf16: (2 - 2**-8) * 2.0**127, f32: (2 - 2**-24) * 2.0**127}
"""Half a step beyond the largest number of a dtype."""


def over_keys(padding: Value, b: Dim, m: Dim) -> Value:
    """A padding mask [b or 1, 1, 1, m or 1] as bool [b, 1, m, 1], along the keys of k and v."""
    full = expand(padding, size=(b, 1, 1, m))
    return reshape(full, shape=(b, 1, m, 1))
