"""What a mask is: its conditions and terms, each by its name, or why there is none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ...ir import Dim, IRError, Op, Value
from ...ir.dims import maximum, minimum
from ...ir.types import DType, f32, i64
from .added import Added
from .build import along, held, made, sources
from .conditions import every, some
from .factors import factors, parts
from .mask import AS_GOOD_AS_INFINITE, PARTS, Mask
from .terms import (
    Apply,
    Axis,
    Condition,
    Eq,
    Is,
    Known,
    Le,
    Some,
    Sum,
    Term,
    TooLargeError,
    collected,
    divisor,
    items,
    one,
    places,
    plus,
    scaled,
    whole,
)


class UnprovedError(Exception):
    """Why a mask could not be named."""


def classify(mask: Value | None, causal: bool = False, offset: Dim = 0, window: Dim | None = None) -> Mask:
    """What `mask` (bool or additive, broadcastable to [b, h, n, m], or None) keeps and adds.

    causal, offset, window: it is in force together with these attributes of `attention`.
    """
    band = Band(*limits(causal, offset, window))
    own = Mask("dense", causal, offset, window, at=mask)
    if mask is None:
        return _named(band.told(own))
    try:
        found = factors(mask)
        kept = Kept(band)
        for part in sorted(parts(found.keep), key=lambda c: not isinstance(c, Le)):
            kept.take(part)
        proved = kept.told(own)
        proved = Added(mask.dtype if mask.dtype.is_float else f32).told(proved, found.added)
    except (UnprovedError, IRError) as reason:
        return replace(own, reason=str(reason))
    except TooLargeError:
        return replace(own, reason="the formula it is made by is too long to prove anything about")
    hard = all(low <= AS_GOOD_AS_INFINITE for low in found.lows)
    return _named(replace(proved, hard=hard))


def classify_op(op: Op) -> Mask:
    """What the mask of an `attention` op is, its attributes included."""
    mask = op.args[3] if len(op.args) > 3 else None
    return classify(mask, op.attrs["causal"], op.attrs["offset"], op.attrs["window"])


def _named(mask: Mask) -> Mask:
    there = {
        "causal": mask.causal, "window": mask.window is not None, "chunked": mask.chunk is not None,
        "prefix": mask.prefix is not None, "packed": mask.segments is not None,
        "padding": mask.padding is not None, "alibi": mask.slopes is not None,
        "relative": mask.relative is not None, "bias": mask.bias is not None,
    }  # fmt: skip
    kind = "+".join(part for part in PARTS if there[part]) or "none"
    return replace(mask, kind=kind, at=mask.at if mask.bias is not None else None)


# ---- positions -----------------------------------------------------------------------------------


def limits(causal: bool, offset: Dim, window: Dim | None) -> tuple[Dim | None, Dim | None, Dim]:
    """(least, greatest) j - i that attributes of `attention` keep, and their offset."""
    if window is None:
        return None, offset if causal else None, offset
    return offset - window + 1, offset if causal else offset + window - 1, offset


@dataclass
class Band:
    """least <= j - i <= greatest. centre: the offset that a window on both sides is taken to have."""

    least: Dim | None = None
    greatest: Dim | None = None
    centre: Dim = 0

    def narrow(self, x: Sum) -> bool:
        """Whether x <= 0 bounds j - i, and then keep to it."""
        slopes = x.slopes()
        if slopes == {3: 1, 2: -1}:
            limit: Dim = -x.start
            self.greatest = limit if self.greatest is None else minimum(self.greatest, limit)
        elif slopes == {3: -1, 2: 1}:
            self.least = x.start if self.least is None else maximum(self.least, x.start)
        else:
            return False
        return True

    def fix(self, x: Sum) -> bool:
        """Whether x == 0 says what j - i is, and then keep to it."""
        back = scaled(x, -1)
        return Band().narrow(x) and self.narrow(x) and self.narrow(back)

    def take(self, c: Condition) -> bool:
        """Whether a condition is about j - i only, and then keep to it."""
        return self.narrow(c.sum) if isinstance(c, Le) else isinstance(c, Eq) and self.fix(c.sum)

    def told(self, mask: Mask) -> Mask:
        """The mask with causal, offset and window of this band. Raises UnprovedError without a name."""
        low, high = self.least, self.greatest
        if high is None:
            if low is not None:
                raise UnprovedError("it masks the past and keeps the future")
            return replace(mask, causal=False, offset=0, window=None)
        if low is None:
            return replace(mask, causal=True, offset=high, window=None)
        for centre in (self.centre, 0):
            if low + high == 2 * centre and high != centre:
                return replace(mask, causal=False, offset=centre, window=high - centre + 1)
        return replace(mask, causal=True, offset=high, window=high - low + 1)


@dataclass
class Kept:
    """The conditions of a mask by their names."""

    band: Band
    padding: list[Condition] = field(default_factory=list)
    prefix: tuple[Band, Condition] | None = None
    segments: tuple[Term, Term, DType] | None = None
    chunk: tuple[Dim, Sum, Dim] | None = None  # size, where chunks start, offset of queries

    def take(self, c: Condition) -> None:
        """Name one more condition. Raises UnprovedError."""
        if isinstance(c, Known):
            raise UnprovedError("the mask keeps nothing")
        if self.band.take(c):
            return
        where = places(c)
        if where <= {0, 3}:
            self.padding.append(c)
        elif not (
            (isinstance(c, Eq) and self._equal(c.sum))
            or (isinstance(c, Some) and self._prefix(c))
            or ((sides := _equality(c)) is not None and self._segments(*sides))
        ):
            raise UnprovedError(_why(c, where))

    def _equal(self, x: Sum) -> bool:
        if self._chunked(x):
            return True
        queries = collected((p, c) for p, c in x.terms if 2 in places(Sum(frozenset({(p, c)}))))
        return self._segments(queries, plus(queries, x, -1), i64)

    def _segments(self, a: Term, b: Term, dtype: DType) -> bool:
        if not places(a) <= {0, 2}:
            a, b = b, a
        if self.segments is not None or not places(a) <= {0, 2} or not places(b) <= {0, 3}:
            return False
        self.segments = a, b, dtype
        return True

    def _chunked(self, x: Sum) -> bool:
        """(i + offset - starts) // c == (j - starts) // c."""
        linear = x.linear() or {}
        found = {c: (a.args[0], divisor(a)) for a, c in linear.items() if isinstance(a, Apply)}
        if len(linear) != 2 or set(found) != {1, -1} or found[1][1] != found[-1][1] or self.chunk:
            return False
        size = found[1][1]
        sides: list[Sum] = [found[1][0], found[-1][0]]  # type: ignore[list-item]
        if size is None:
            return False
        sides[0] = plus(sides[0], whole(x.start * size))
        sides.sort(key=lambda s: 3 in places(s))
        starts = []
        for side, place in zip(sides, (2, 3), strict=True):
            axis = _index(side, place)
            if axis is None:
                return False
            starts.append(plus(one(axis), side, -1))
        offset = plus(starts[1], starts[0], -1).constant
        if offset is None or not places(starts[1]) <= {0}:
            return False
        self.chunk = size, starts[1], offset
        return True

    def _prefix(self, c: Some) -> bool:
        """j <= i + offset or a condition on keys."""
        past = [p for p in c.parts if isinstance(p, Le) and Band().narrow(p.sum)]
        rest = some(c.parts - set(past))
        if len(past) != 1 or self.prefix is not None or not places(rest) <= {0, 3}:
            return False
        band = Band(centre=self.band.centre)
        band.narrow(past[0].sum)
        self.prefix = band, rest
        return band.least is None

    def told(self, mask: Mask) -> Mask:
        """The mask with all that was named."""
        if self.prefix is not None:
            if self.band.least is not None or self.band.greatest is not None or self.chunk:
                raise UnprovedError("a prefix is kept within a window, which has no name")
            self.band = self.prefix[0]
            mask = replace(mask, prefix=_prefix_of(self.prefix[1]))
        mask = self.band.told(mask)
        if self.chunk is not None:
            size, starts, offset = self.chunk
            if mask.causal or mask.window is not None:
                if offset != mask.offset:
                    raise UnprovedError("chunks and the past are counted from different positions")
            mask = replace(mask, chunk=size, offset=offset)
            if starts.terms:
                mask = replace(mask, starts=along(made(starts, i64), 0))
        if self.segments is not None:
            a, b, dtype = self.segments
            mask = replace(mask, segments=(along(made(a, dtype), 0, 2), along(made(b, dtype), 0, 3)))
        if self.padding:
            padding = along(held(every(self.padding)), 0, 1, 2, 3)
            mask = replace(mask, padding=padding)
        return mask


def _index(x: Sum, place: int) -> Axis | None:
    """The index of an axis that x has in it, not multiplied by another atom."""
    return next((a for a in x.linear() or () if isinstance(a, Axis) and a.place == place), None)


def _prefix_of(c: Condition) -> Dim | Value:
    """p of j < p, or where a key is of the prefix."""
    if isinstance(c, Le):
        axis = _index(c.sum, 3)
        if axis is not None and one(axis).terms <= c.sum.terms:
            end = plus(plus(one(axis), whole(1)), c.sum, -1)
            if end.constant is not None:
                return end.constant
            if places(end) <= {0}:
                return along(made(end, i64), 0)
    return along(held(c), 0, 1, 2, 3)


def _equality(c: Condition) -> tuple[Term, Term, DType] | None:
    """The sides of an equality of what is no whole number."""
    atom = c.atom if isinstance(c, Is) else None
    if not isinstance(atom, Apply) or atom.name != "eq" or atom.dtypes[0] is not atom.dtypes[1]:
        return None
    return *atom.args, atom.dtypes[0]  # type: ignore[return-value]


def _why(c: Condition, where: Iterable[int]) -> str:
    if isinstance(c, Le) and not any(items(c)):
        return "it compares positions in a way that is not j <= i + offset"
    names = sources(items(c))
    through = f" through {names}" if names else ""
    if 1 in where:
        return f"what it keeps depends on the head{through}"
    if 3 not in where:
        return f"it masks whole queries{through}"
    return f"what it keeps depends on the query{through}"
