"""A mask as what is kept, a conjunction of conditions, and what is added, a sum of terms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...ir import Value
from ...ir.types import f32
from .arithmetic import converted, is_whole, two_valued, value_of
from .conditions import TRUE, compared, every, negated
from .element import At, Reader, aligned
from .mask import NEGLIGIBLE
from .terms import (
    ONE,
    All,
    Apply,
    Axis,
    Choice,
    Condition,
    Eq,
    Item,
    Known,
    Le,
    Not,
    Term,
    items,
    one,
    plus,
)


@dataclass
class Factors:
    """What is kept and what is added there. lows: what is added where it is not kept."""

    keep: Condition = TRUE
    added: list[tuple[int, Term]] = field(default_factory=list)
    lows: set[float] = field(default_factory=set)

    def add(self, x: Term, sign: int = 1) -> None:
        """Take a term of an additive mask apart: numbers, masks and the rest."""
        value = value_of(x)
        if value is not None:
            if not math.isfinite(value) or value * sign <= NEGLIGIBLE:
                self.keep = Known(False)
            return None  # the same for every key
        if isinstance(x, Apply) and x.name in ("add", "sub"):
            self.add(x.args[0], sign)
            return self.add(x.args[1], sign if x.name == "add" else -sign)
        if isinstance(x, Apply) and x.name == "cast" and x.dtypes[0].is_float:
            return self.add(x.args[0], sign)
        if isinstance(x, Choice):
            for kept, masked, condition in (
                (x.a, x.b, x.condition), (x.b, x.a, negated(x.condition)),
            ):  # fmt: skip
                low, high = value_of(masked), value_of(kept)
                if low is None or math.isnan(low) or (high is not None and not math.isfinite(high)):
                    continue
                if low * sign - (0.0 if high is None else high * sign) <= NEGLIGIBLE:
                    self.keep = every((self.keep, condition))
                    self.lows.add(low * sign)
                    return self.add(kept, sign)
        self.added.append((sign, x))


def element_of(mask: Value) -> tuple[Term, tuple[Axis, ...]]:
    """The mask's element at [b, h, i, j], and these four indices."""
    shape = (*(1,) * (4 - mask.rank), *mask.shape)
    axes = tuple(Axis(place, size) for place, size in enumerate(shape))
    at = tuple(map(one, axes))
    return Reader().read(mask, aligned(mask, at)), axes


def factors(mask: Value) -> Factors:
    """A mask taken apart: bool keeps where it holds, a number is added to the scores."""
    x, _ = element_of(mask)
    found = Factors()
    if mask.dtype.kind == "b":
        found.keep = x  # type: ignore[assignment]
        found.lows.add(-math.inf)
    else:
        found.add(converted(x, mask.dtype, mask.dtype if mask.dtype.is_float else f32))
    found.keep = packed_positions(found.keep)
    return found


def parts(c: Condition) -> frozenset[Condition]:
    """The conditions that must all hold."""
    return c.parts if isinstance(c, All) else frozenset() if c == TRUE else frozenset({c})


# ---- positions that count within segments --------------------------------------------------------


def packed_positions(keep: Condition) -> Condition:
    """Comparisons of two positions within a segment as comparisons of indices.

    Segments made by counting where positions do not go on by one, `cumsum(diff(positions) != 1)`, are
    such that between two tokens of one segment positions differ as much as indices do.
    """
    pairs = [found for part in parts(keep) if (found := _counted(part)) is not None]
    if not pairs:
        return keep
    new = []
    for part in parts(keep):
        if isinstance(part, Le):
            linear = part.sum.linear() or {}
            for i, j, counted in pairs:
                a, b = Item(counted, i), Item(counted, j)
                c = linear.get(a, 0)
                if c != 0 and linear.get(b) == -c:
                    gap = plus(plus(i[-1], j[-1], -1), plus(one(a), one(b), -1), -1)
                    part = compared(plus(part.sum, gap, c))
                    break
        new.append(part)
    return every(new)


def _counted(part: Condition) -> tuple[At, At, Value] | None:
    """The two places of an equality of segments, and the positions that the segments were made from."""
    linear = part.sum.linear() if isinstance(part, Eq) else None
    if not linear or part.sum.start != 0 or len(linear) != 2 or set(linear.values()) != {1, -1}:  # type: ignore[union-attr]
        return None
    a, b = linear
    if not (isinstance(a, Item) and isinstance(b, Item) and a.value is b.value and a.at[:-1] == b.at[:-1]):
        return None
    op = a.value.op
    if op.name != "cumsum" or op.attrs["dim"] != a.value.rank - 1 or not is_whole(a.value.dtype):
        return None  # a narrow sum begins anew
    (jumps,) = op.args  # whether each token starts a segment
    token = one(Axis(5, jumps.shape[-1] - 1))
    jump = two_valued(Reader().read(jumps, (*a.at[:-1], plus(token, ONE))))  # of all but the first
    if jump is None or jump[1:] != (1, 0) or not isinstance(jump[0], Not):
        return None
    goes_on = jump[0].condition
    for item in items(goes_on):  # now - before == 1, of one tensor
        now, before = (Item(item.value, (*a.at[:-1], at)) for at in (plus(token, ONE), token))
        if compared(plus(plus(one(now), one(before), -1), ONE, -1), True) == goes_on:
            return a.at, b.at, item.value
    return None
