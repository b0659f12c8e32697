"""Reading one element of a tensor off the graph, as a formula over its indices.

`Reader().read(x, at)` is x[at]. Views become arithmetic of indices, elementwise ops arithmetic of
formulas, and what is neither, such as an input, is an `Item`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...ir import Dim, Op, Value
from ...ir.dims import at_least
from ...ir.types import bool_, i64
from .arithmetic import combined, converted, is_whole, sorted_
from .arithmetic import number as number_of
from .conditions import choice, compared, every
from .mask import uniform
from .terms import (
    CONDITIONS,
    ONE,
    ZERO,
    Item,
    Known,
    Number,
    Sum,
    Term,
    TooLargeError,
    apply,
    bounds,
    items,
    one,
    places,
    plus,
    quotient,
    scaled,
    whole,
)

DEPTH = 120
"""Ops one below the other that are looked through."""

LARGEST = 2000
"""Ops in a formula, each counted as often as it is used: a longer formula is not written out."""

ELEMENTWISE = frozenset({
    "abs", "add", "cast", "ceil", "clamp", "cos", "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "fmod",
    "ge", "gelu", "gt", "isfinite", "isinf", "isnan", "le", "log", "log10", "log1p", "log2", "logical_and",
    "logical_not", "logical_or", "logical_xor", "lt", "maximum", "minimum", "mul", "ne", "neg", "pow",
    "reciprocal", "relu", "remainder", "round", "rsqrt", "sigmoid", "sign", "silu", "sin", "sqrt", "sub",
    "tanh", "trunc", "where",
})  # fmt: skip
"""Ops whose result at an index depends on their operands at that index only."""

At = tuple[Sum, ...]


class Reader:
    """Reads elements, each once."""

    def __init__(self) -> None:
        self.known: dict[tuple[Value, At], tuple[Term, int]] = {}
        self.depth = self.size = 0

    def read(self, x: Value, at: At) -> Term:
        """x[at], a condition where x is bool, a `Sum` where it is an integer of 32 bits or more."""
        if (x, at) not in self.known:
            if self.depth > DEPTH:
                return unread(x, at)
            outside, self.size = self.size, 1
            self.depth += 1
            try:
                found = self._read(x, at)
            except TooLargeError:
                found = unread(x, at)
            self.depth -= 1
            if self.size > LARGEST:
                found, self.size = unread(x, at), 1
            self.known[x, at] = found, self.size
            self.size = outside
        found, size = self.known[x, at]
        self.size += size
        return found

    def _read(self, x: Value, at: At) -> Term:
        op = x.op
        number = uniform(x)
        if number is not None:
            return number_of(number, x.dtype)
        if len(op.types) == 1:
            if op.name in ELEMENTWISE:
                args = [self.read(v, aligned(v, at)) for v in op.args]
                return combined(op, args)
            view = VIEWS.get(op.name)
            found = None if view is None else view(self, op, at)
            if found is not None:
                return found
        return unread(x, at)


def aligned(part: Value, at: At) -> At:
    """The index of a broadcast operand."""
    lead = len(at) - part.rank
    return tuple(ZERO if d == 1 else at[lead + i] for i, d in enumerate(part.shape))


def unread(x: Value, at: At) -> Term:
    """x[at] as it is."""
    return sorted_(Item(x, at), x.dtype)


# ---- views ---------------------------------------------------------------------------------------


def _reshape(reader: Reader, op: Op, at: At) -> Term | None:
    source = op.args[0]
    inner = reshaped(op.types[0].shape, source.shape, at)
    return None if inner is None else reader.read(source, inner)


def reshaped(shape: Sequence[Dim], source: Sequence[Dim], at: At) -> At | None:
    """The index into `source` of the element that is at `at` in `shape`."""
    here = [(d, i) for d, i in zip(shape, at, strict=True) if d != 1]
    there = [k for k, d in enumerate(source) if d != 1]
    found: dict[int, Sum] = {}
    while here or there:
        group, axes = [here.pop(0)] if here else [], [there.pop(0)] if there else []
        if not group or not axes:
            return None
        have, want = group[0][0], source[axes[0]]
        while have != want:
            grow = here and (not there or not at_least(have - want, 1))
            if grow:
                group.append(here.pop(0))
                have = have * group[-1][0]
            elif there:
                axes.append(there.pop(0))
                want = want * source[axes[-1]]
            else:
                return None
        flat = ZERO
        for d, i in group:
            flat = plus(scaled(flat, d), i)
        for k in reversed(axes[1:]):
            rest = quotient(flat, source[k], i64)
            found[k], flat = plus(flat, rest, -source[k]), rest
        found[axes[0]] = flat
    return tuple(found.get(k, ZERO) for k in range(len(source)))


def _permute(reader: Reader, op: Op, at: At) -> Term:
    back = dict(zip(op.attrs["dims"], at, strict=True))
    return reader.read(op.args[0], tuple(back[i] for i in range(len(at))))


def _expand(reader: Reader, op: Op, at: At) -> Term:
    return reader.read(op.args[0], aligned(op.args[0], at))


def _slice(reader: Reader, op: Op, at: At) -> Term:
    dim, start, step = (op.attrs[k] for k in ("dim", "start", "step"))
    here = plus(whole(start), at[dim], step)
    return reader.read(op.args[0], (*at[:dim], here, *at[dim + 1 :]))


def _flip(reader: Reader, op: Op, at: At) -> Term:
    x = op.args[0]
    turned = [plus(whole(x.shape[k] - 1), i, -1) if k in op.attrs["dims"] else i for k, i in enumerate(at)]
    return reader.read(x, tuple(turned))


def _detach(reader: Reader, op: Op, at: At) -> Term:
    return reader.read(op.args[0], at)


def _arange(reader: Reader, op: Op, at: At) -> Term | None:
    start, step, dtype = op.attrs["start"], op.attrs["step"], op.types[0].dtype
    if isinstance(start, float) and start.is_integer():
        start = int(start)
    if isinstance(step, float) and step.is_integer():
        step = int(step)
    if isinstance(start, float) or not isinstance(step, int):
        return None
    place = plus(whole(start), at[0], step)
    if is_whole(dtype):
        return place
    return apply("cast", (place,), (i64,), dtype=dtype) if dtype.is_float else None


def _size(reader: Reader, op: Op, at: At) -> Term | None:
    return whole(op.attrs["value"]) if is_whole(op.types[0].dtype) else None


def _eye(reader: Reader, op: Op, at: At) -> Term:
    same = compared(plus(at[0], at[1], -1), True)
    return converted(same, bool_, op.types[0].dtype)


def _triangle(reader: Reader, op: Op, at: At) -> Term:
    x, diagonal = op.args[0], op.attrs["diagonal"]
    past = plus(plus(at[-1], at[-2], -1), whole(-diagonal))  # j - i - diagonal
    kept = compared(past if op.name == "tril" else scaled(past, -1))
    inner = reader.read(x, at)
    if isinstance(inner, CONDITIONS):
        return every((kept, inner))
    return choice(kept, inner, ZERO if isinstance(inner, Sum) else Number(0.0))


def _cat(reader: Reader, op: Op, at: At) -> Term | None:
    """The piece, where it is known which; else by cases."""
    dim = op.attrs["dim"]
    ends: list[Dim] = [0]
    for part in op.args:
        ends.append(ends[-1] + part.shape[dim])
    low, high = bounds(at[dim])
    pieces: list[tuple[Dim, Term]] = []
    for part, start, end in zip(op.args, ends[:-1], ends[1:], strict=True):
        if low is not None and at_least(low - end, 0):
            continue
        here = plus(at[dim], whole(start), -1)
        if low is not None and high is not None and at_least(low - start, 0) and at_least(end - 1 - high, 0):
            return reader.read(part, (*at[:dim], here, *at[dim + 1 :]))
        pieces.append((end, _inside(reader, part, dim, here, at)))
        if high is not None and at_least(end - 1 - high, 0):
            break
    if not pieces:
        return None  # no element is there to read
    found = pieces[-1][1]
    for end, piece in reversed(pieces[:-1]):
        found = choice(compared(plus(at[dim], whole(1 - end))), piece, found)
    return found


def _inside(reader: Reader, x: Value, dim: int, here: Sum, at: At) -> Term:
    """x at `here` along an axis, which may be outside: then it is any element, but one there is."""
    found = reader.read(x, (*at[:dim], ZERO if x.shape[dim] == 1 else here, *at[dim + 1 :]))
    if not any(places(i) & places(here) for item in items(found) for i in item.at):
        return found
    first = one(apply("maximum", (here, ZERO), (i64, i64)))
    nearest = one(apply("minimum", (first, whole(x.shape[dim] - 1)), (i64, i64)))
    return reader.read(x, (*at[:dim], nearest, *at[dim + 1 :]))


def _pad(reader: Reader, op: Op, at: At) -> Term | None:
    x, pad, dtype = op.args[0], op.attrs["pad"], op.types[0].dtype
    padded = [(x.rank - 1 - i // 2, pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    padded = [(dim, a, b) for dim, a, b in padded if (a, b) != (0, 0)]
    if op.attrs["mode"] != "constant" or len(padded) != 1 or x.shape[padded[0][0]] == 0:
        return None
    ((dim, before, after),) = padded
    if not (at_least(before, 0) and at_least(after, 0)):
        return None
    here = plus(at[dim], whole(before), -1)
    there = every((compared(scaled(here, -1)), compared(plus(here, whole(1 - x.shape[dim])))))
    return choice(there, _inside(reader, x, dim, here, at), number_of(op.attrs["value"] or 0, dtype))


def _index(reader: Reader, op: Op, at: At) -> Term | None:
    x, indices = op.args[0], [*op.args[1:]]
    indices += [None] * (x.rank - len(indices))
    used = [k for k, i in enumerate(indices) if i is not None]
    rank = max(indices[k].rank for k in used)
    lead = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    shared, rest = at[lead : lead + rank], [*at[:lead], *at[lead + rank :]]
    picked = [rest.pop(0) if i is None else reader.read(i, aligned(i, shared)) for i in indices]
    return _picked(reader, x, picked)


def _picked(reader: Reader, x: Value, picked: Sequence[Term]) -> Term | None:
    """x at computed places: looked through where no place counts from the end."""
    if not all(isinstance(i, Sum) for i in picked):
        return None
    at: Any = tuple(picked)
    lows = [bounds(i)[0] for i in at]
    return reader.read(x, at) if all(low is not None and at_least(low, 0) for low in lows) else unread(x, at)


def _index_select(reader: Reader, op: Op, at: At) -> Term | None:
    (x, index), dim = op.args, op.attrs["dim"]
    place = reader.read(index, (at[dim],) if index.rank else ())
    return _picked(reader, x, (*at[:dim], place, *at[dim + 1 :]))


def _gather(reader: Reader, op: Op, at: At) -> Term | None:
    (x, index), dim = op.args, op.attrs["dim"]
    return _picked(reader, x, (*at[:dim], reader.read(index, at), *at[dim + 1 :])) if x.rank else None


def _embedding(reader: Reader, op: Op, at: At) -> Term | None:
    table, ids = op.args
    return _picked(reader, table, (reader.read(ids, at[:-1]), at[-1]))


def _cumsum(reader: Reader, op: Op, at: At) -> Term | None:
    """Running sums of one number."""
    x, dim = op.args[0], op.attrs["dim"]
    inner = reader.read(x, at) if x.rank and is_whole(op.types[0].dtype) else None
    if isinstance(inner, Known):
        inner = ONE if inner.value else ZERO
    if not isinstance(inner, Sum) or inner.constant is None:
        return None
    return scaled(plus(at[dim], ONE), inner.constant)


VIEWS: dict[str, Callable[[Reader, Op, At], Term | None]] = {
    "reshape": _reshape, "permute": _permute, "expand": _expand, "slice": _slice, "flip": _flip,
    "detach": _detach, "arange": _arange, "size": _size, "eye": _eye, "tril": _triangle, "triu": _triangle,
    "cat": _cat, "pad": _pad, "index": _index, "index_select": _index_select, "gather": _gather,
    "embedding": _embedding, "cumsum": _cumsum,
}  # fmt: skip
"""What is looked through besides elementwise ops."""
