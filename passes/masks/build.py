"""Formulas as values of the graph: the other way round from reading.

Every value made here has four axes [b or 1, h or 1, n or 1, m or 1], or none when it is constant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...ir import OPS, Dim, DType, Value
from ...ir.ops.elementwise import cast, eq, le, logical_and, logical_not, logical_or, ne, where
from ...ir.ops.graph import size
from ...ir.ops.index import arange, index
from ...ir.ops.shape import permute, reshape, slice_
from ...ir.types import bool_, i64
from .terms import (
    All,
    Apply,
    Axis,
    Choice,
    Condition,
    Eq,
    Is,
    Item,
    Known,
    Le,
    Not,
    Number,
    Sum,
    Term,
    collected,
)


def four(x: Value) -> Value:
    """x with four axes."""
    return x if x.rank == 4 else reshape(x, shape=(1, 1, 1, 1))


def made(x: Term, dtype: DType) -> Value:
    """x as a value of this dtype."""
    if isinstance(x, Sum):
        found = _sum(x)
    elif isinstance(x, Number):
        return constant(x.value, dtype)
    elif isinstance(x, Item):
        found = _item(x)
    elif isinstance(x, Apply):
        args = [made(a, d) for a, d in zip(x.args, x.dtypes, strict=True)]
        found = OPS[x.name](*args, **x.attrs)
    elif isinstance(x, Choice):
        found = where(held(x.condition), made(x.a, dtype), made(x.b, dtype))
    else:
        found = held(x)
    return found if found.dtype is dtype else cast(found, dtype=dtype)


def constant(number: float, dtype: DType) -> Value:
    """A 0-d constant."""
    kind = {"b": bool, "u": int, "i": int}.get(dtype.kind, float)
    return OPS["const"](value=kind(number), dtype=dtype)


def whole_number(number: Dim) -> Value:
    """An integer or dim as a 0-d value."""
    return constant(number, i64) if isinstance(number, int) else size(value=number, dtype=i64)


def _sum(x: Sum) -> Value:
    total: Value | None = None
    for atoms, c in sorted(x.terms, key=lambda term: (not term[0], str(term[1]).startswith("-"))):
        part: Value | None = None
        for atom in atoms:
            factor = _axis(atom) if isinstance(atom, Axis) else made(atom, i64)
            part = factor if part is None else part * factor
        if part is None:
            part = whole_number(c)
        elif c == -1 and total is not None:
            total = total - part
            continue
        elif c != 1:
            part = part * whole_number(c)
        total = part if total is None else total + part
    return constant(0, i64) if total is None else total


def _axis(axis: Axis) -> Value:
    shape = tuple(axis.size if place == axis.place else 1 for place in range(4))
    return reshape(arange(end=axis.size, dtype=i64), shape=shape)


def _item(item: Item) -> Value:
    """A view where the element's place is its axes in some order, else an indexing."""
    x = item.value
    if not x.rank:
        return x
    order: dict[int, int] = {}
    cuts: list[tuple[int, Dim, Dim]] = []
    for k, place in enumerate(item.at):
        axes = place.linear() or {}
        start: Dim = place.start
        if place.constant is not None and isinstance(start, int) and start >= 0:
            cuts.append((k, start, start + 1))
            continue
        axis = next(iter(axes), None)
        if len(axes) != 1 or not isinstance(axis, Axis) or axes[axis] != 1 or axis.place in order:
            break
        if not isinstance(start, int) or start < 0:
            break
        order[axis.place] = k
        cuts.append((k, start, start + axis.size))
    else:
        for k, start, end in cuts:
            if (start, end) != (0, x.shape[k]):
                x = slice_(x, dim=k, start=start, end=end)
        kept = [order[place] for place in sorted(order)]
        dims = (*(k for k in range(x.rank) if k not in kept), *kept)
        x = x if dims == tuple(range(x.rank)) else permute(x, dims=dims)
        sizes = dict(zip(sorted(order), x.shape[x.rank - len(kept) :], strict=True))
        shape = tuple(sizes.get(place, 1) for place in range(4))
        return x if x.shape == shape else reshape(x, shape=shape)
    return index(x, *(made(place, i64) for place in item.at))


def held(x: Condition) -> Value:
    """x as a bool value."""
    if isinstance(x, Known):
        return constant(x.value, bool_)
    if isinstance(x, (Le, Eq)):
        left = collected((p, c) for p, c in x.sum.terms if p and not str(c).startswith("-"))
        right = collected((p, c * -1) for p, c in x.sum.terms if not p or str(c).startswith("-"))
        return (le if isinstance(x, Le) else eq)(_sum(left), _sum(right))
    if isinstance(x, Is):
        return made(x.atom, bool_)
    if isinstance(x, Not) and isinstance(x.condition, Eq):
        same = held(x.condition).op
        return ne(*same.args)
    if isinstance(x, Not):
        return logical_not(held(x.condition))
    total: Any = None
    for part in sorted(map(held, x.parts), key=lambda v: (v.op.name, str(v.type))):
        join = logical_and if isinstance(x, All) else logical_or
        total = part if total is None else join(total, part)
    return total


def source(x: Value) -> str:
    """What to call a value in a message."""
    return f"{x.op.name} {x.op.attrs['name']!r}" if x.op.name in ("input", "param") else x.op.name


def sources(items: Iterable[Item]) -> str:
    """What to call the first three of the tensors that have these elements."""
    return ", ".join(list(dict.fromkeys(source(item.value) for item in items))[:3])


def along(x: Value, *places: int) -> Value:
    """x with only these of its four axes; the others are of size 1."""
    x = four(x)
    shape = tuple(x.shape[p] for p in places)
    return x if x.shape == shape else reshape(x, shape=shape)
