"""What a mask adds where it keeps: ALiBi, a function of j - i, or some other bias."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ir import Value
from ...ir.dims import at_least
from ...ir.types import DType, i64
from .arithmetic import value_of, whole_of
from .build import along, four, made, sources
from .conditions import replaced
from .mask import Mask
from .terms import (
    ONE,
    Apply,
    Axis,
    Item,
    Number,
    Sum,
    Term,
    children,
    collected,
    items,
    one,
    places,
    plus,
    scaled,
    whole,
)

Signed = list[tuple[int, Term]]
Product = tuple[Any, ...]


class Added:
    """The terms of an additive mask by their names. dtype: of the mask."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype

    def told(self, mask: Mask, terms: Signed) -> Mask:
        """`mask`, which says what is kept, with what is added there."""
        terms = [(sign, x) for sign, x in terms if 3 in places(x)]  # the rest is the same for all keys
        if not terms:
            return mask
        whole_alibi = self.alibi(mask, terms)
        if whole_alibi is not None:
            return whole_alibi
        relative = [(sign, x) for sign, x in terms if toeplitz(x)]
        rest = [term for term in terms if term not in relative]
        for group in (relative, rest):
            found = self.alibi(mask, group) if group else None
            if found is not None and found.slopes is not None:
                mask = found
                group.clear()
                break
        if relative:
            mask = replace(mask, relative=self.by_distance(relative))
        if rest:
            mask = replace(mask, bias=four(self.total(rest)), reason=_why(rest))
        return mask

    def total(self, terms: Signed) -> Value:
        """The sum of terms as a value."""
        total: Value | None = None
        for sign, x in sorted(terms, key=lambda term: -term[0]):
            part = made(x, self.dtype)
            if total is None:
                total = part if sign > 0 else -part
            else:
                total = total + part if sign > 0 else total - part
        assert total is not None
        return total

    def by_distance(self, terms: Signed) -> Value:
        """Terms that depend on j - i only, as a table of n + m - 1 distances from -(n - 1) on."""
        axes = {axis.place: axis for _, x in terms for axis in axes_of(x)}
        n, m = axes[2].size, axes[3].size
        moved = {2: whole(0), 3: plus(one(Axis(3, n + m - 1)), whole(1 - n))}
        table = [(sign, replaced(x, lambda a: moved.get(a.place, one(a)))) for sign, x in terms]
        return along(self.total(table), 0, 1, 3)

    # ---- ALiBi -----------------------------------------------------------------------------------

    def alibi(self, mask: Mask, terms: Signed) -> Mask | None:
        """slopes[h] * j and the like, or None."""
        total: dict[Product, float] = {}
        for sign, x in terms:
            for factors, c in expanded(x).items():
                total[factors] = total.get(factors, 0.0) + sign * c
        varying = {p: c for p, c in total.items() if c and any(3 in places(x) for x in p)}
        slopes = {tuple(x for x in p if places(x) <= {1}) for p in varying}
        if len(slopes) != 1:
            return None
        (slope,) = slopes
        along_keys = [(c, tuple(x for x in p if not places(x) <= {1})) for p, c in varying.items()]
        c, rest = along_keys[0]
        if len(along_keys) == 1 and len(rest) == 1:
            if isinstance(rest[0], Axis):
                return replace(mask, slopes=self.slopes(slope, c))
            gap = _distance(rest[0])
            if gap is not None:
                if mask.causal and mask.prefix is None and at_least(gap - mask.offset, 0):
                    return replace(mask, slopes=self.slopes(slope, -c))
                free = not mask.causal and mask.window is None and mask.chunk is None
                if free or gap == mask.offset:
                    return replace(mask, offset=gap, slopes=self.slopes(slope, -c), symmetric=True)
        positions = [(c, x) for c, p in along_keys for x in p]
        if not slope or not any(places(x) == {1} for x in slope):
            return None
        if not all(places(x) <= {0, 3} and _integer(x) for _, x in positions):
            return None
        if not all(c == int(c) for c, _ in along_keys):
            return None
        where = collected((p, int(c)) for c, p in along_keys)
        return replace(mask, slopes=self.slopes(slope, 1.0), positions=along(made(where, i64), 0, 3))

    def slopes(self, factors: Product, c: float) -> Value:
        """c times factors that depend on the head only, [h or 1]."""
        total = made(Number(c), self.dtype)
        for x in factors:
            total = made(one(x) if isinstance(x, Axis) else x, self.dtype) * total
        return along(total, 1)


def toeplitz(x: Term) -> bool:
    """Whether x is a function of j - i: the same for the next query and the next key."""

    def next_(axis: Axis) -> Sum:
        return plus(one(axis), ONE) if axis.place in (2, 3) else one(axis)

    return {2, 3} <= places(x) and replaced(x, next_) == x


def axes_of(x: object) -> set[Axis]:
    """The indices in x."""
    return {x} if isinstance(x, Axis) else set().union(*map(axes_of, children(x)))


def expanded(x: Term) -> dict[Product, float]:
    """x as a sum of numbers times products, as real numbers."""
    value = value_of(x)
    if value is not None:
        return {(): float(value)}
    exact = whole_of(x)
    if exact is not None and exact != x:
        return expanded(exact)
    if isinstance(x, Sum):
        plain = {atoms: float(c) for atoms, c in x.terms if isinstance(c, int)}
        return plain | {(*atoms, whole(c)): 1.0 for atoms, c in x.terms if not isinstance(c, int)}
    if isinstance(x, Apply):
        if x.name == "cast" and x.dtypes[0].kind in "if":
            return expanded(x.args[0])
        if x.name in ("add", "sub", "neg", "mul"):
            first, *others = map(expanded, x.args)
            if x.name == "neg":
                return {p: -c for p, c in first.items()}
            if x.name == "mul":
                out: dict[Product, float] = {}
                for p, c in first.items():
                    for q, d in others[0].items():
                        key = tuple(sorted((*p, *q), key=hash))
                        out[key] = out.get(key, 0.0) + c * d
                return out
            sign = 1 if x.name == "add" else -1
            out = dict(first)
            for p, c in others[0].items():
                out[p] = out.get(p, 0.0) + sign * c
            return out
        by = value_of(x.args[1]) if x.name == "div" and x.attrs["rounding_mode"] is None else None
        if by:
            return {p: c / by for p, c in expanded(x.args[0]).items()}
    return {(x,): 1.0}


def _distance(x: Term) -> int | None:
    """o of |i + o - j|."""
    if not isinstance(x, Apply) or x.name != "abs" or not isinstance(x.args[0], Sum):
        return None
    for inner in (x.args[0], scaled(x.args[0], -1)):
        if inner.slopes() == {2: 1, 3: -1}:
            return inner.start  # type: ignore[return-value]
    return None


def _integer(x: Term) -> bool:
    return isinstance(x, Axis) or (isinstance(x, Item) and x.value.dtype.kind in "ui")


def _why(terms: Signed) -> str:
    through = sources(item for _, x in terms for item in items(x)) or "queries and keys"
    if all(places(x) <= {0, 3} for _, x in terms):
        through += " and is the same for every query and head"
    return f"what it adds to the scores is not proved to be 0 or -inf: it depends on {through}"
