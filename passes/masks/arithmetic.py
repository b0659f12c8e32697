"""Elementwise ops on formulas: exact for integers and conditions, as written for floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...ir import OPS, DType, IRError, Op, build
from ...ir.dims import at_least
from ...ir.interpret import meaning
from ...ir.types import i64
from .conditions import TRUE, choice, compared, every, negated, some
from .mask import overflows
from .terms import (
    CONDITIONS,
    ONE,
    ZERO,
    Apply,
    Choice,
    Condition,
    Eq,
    Is,
    Item,
    Known,
    Not,
    Number,
    Sum,
    Term,
    apply,
    bounds,
    items,
    one,
    plus,
    product,
    quotient,
    scaled,
    whole,
)

EXACT = ("f32", "f64")
"""Floats that hold every position of a mask that fits in memory: 2^24 are exact in f32."""


def is_whole(dtype: DType) -> bool:
    """Whether index arithmetic in `dtype` is exact: narrow integers wrap."""
    return dtype.kind == "i" and dtype.bits >= 32


def sorted_(atom: Item | Apply, dtype: DType) -> Term:
    """An atom of this dtype as the sort of formula that the dtype has."""
    return Is(atom) if dtype.kind == "b" else one(atom) if is_whole(dtype) else atom


def number(value: float, dtype: DType) -> Term:
    """A constant of this dtype."""
    if dtype.kind == "b":
        return Known(bool(value))
    return whole(int(value)) if is_whole(dtype) else Number(float(value))


def value_of(x: Term) -> float | None:
    """The number that x is."""
    if isinstance(x, Known):
        return x.value
    constant = x.constant if isinstance(x, Sum) else x.value if isinstance(x, Number) else None
    return constant if isinstance(constant, (int, float)) else None


def two_valued(x: Term) -> tuple[Condition, float, float] | None:
    """(condition, number where it holds, number elsewhere) when x is one of two numbers."""
    if isinstance(x, CONDITIONS):
        return x, True, False
    if isinstance(x, Choice):
        a, b = value_of(x.a), value_of(x.b)
        return None if a is None or b is None else (x.condition, a, b)
    if isinstance(x, Sum):
        atoms = [(p, c) for p, c in x.terms if p]
        if len(atoms) == 1 and len(atoms[0][0]) == 1 and isinstance(atoms[0][1], int):
            inner = two_valued(atoms[0][0][0]) if isinstance(atoms[0][0][0], Choice) else None
            start, times = x.start, atoms[0][1]
            if inner is not None and isinstance(start, int):
                return inner[0], start + times * inner[1], start + times * inner[2]
    return None


def combined(op: Op, args: Sequence[Term]) -> Term:
    """The result of an elementwise op on formulas."""
    name, out = op.name, op.types[0].dtype
    found: Term | None
    dtypes = tuple(v.dtype for v in op.args)
    if name == "cast":
        return converted(args[0], dtypes[0], out)
    if name == "where":
        c: Any = args[0]
        a, b = (converted(x, d, out) for x, d in zip(args[1:], dtypes[1:], strict=True))
        return choice(c, _where_zero(c, a), _where_zero(negated(c), b))
    if name in LOGIC:
        return LOGIC[name](*args)
    if name in COMPARES:
        found = _compare(name, *(_widened(x, d) for x, d in zip(args, dtypes, strict=True)))
        if found is not None:
            return found
    elif is_whole(out) and name in INTEGER:
        found = INTEGER[name](op, *(converted(x, d, out) for x, d in zip(args, dtypes, strict=True)))
        if found is not None:
            return found
    found = _tabulated(op, args)
    if found is not None:
        return found
    return sorted_(apply(name, tuple(args), dtypes, **op.attrs), out)


def _where_zero(c: Condition, x: Term) -> Term:
    """x where c holds: the number 0 if that is what c says, as in where(x != 0, low, x)."""
    exact = None if isinstance(x, (Sum, Number)) else whole_of(x)
    zero = isinstance(c, Eq) and exact is not None and c.sum in (exact, scaled(exact, -1))
    test = c.condition.atom if isinstance(c, Not) and isinstance(c.condition, Is) else None
    if isinstance(test, Apply) and test.name == "cast" and test.args == (x,):
        zero = True
    return Number(0.0) if zero else x


def _tabulated(op: Op, args: Sequence[Term]) -> Term | None:
    """The result where all that varies is one condition: computed for both of its cases."""
    conditions, cases = set(), []
    for x in args:
        value = value_of(x)
        found = (TRUE, value, value) if value is not None else two_valued(x)
        if found is None:
            return None
        conditions |= {found[0]} - {TRUE}
        cases.append(found[1:])
    if len(conditions) > 1:
        return None
    results = [_evaluated(op, [case[k] for case in cases]) for k in (0, 1)]
    if results[0] is None or results[1] is None:
        return None
    return choice(next(iter(conditions), TRUE), results[0], results[1])


def _evaluated(op: Op, numbers: Sequence[float]) -> Term | None:
    dtypes = [v.dtype for v in op.args]
    try:
        consts = [OPS["const"](value=_as(x, d), dtype=d) for x, d in zip(numbers, dtypes, strict=True)]
        small = build(op.defn, consts, op.attrs)
        with np.errstate(all="ignore"):
            (found,) = meaning(small, [np.asarray(c.number, c.dtype.numpy) for c in consts], {})
    except (IRError, OverflowError, ValueError):
        return None
    return number(found.item(), op.types[0].dtype)


def _as(x: float, dtype: DType) -> float:
    return bool(x) if dtype.kind == "b" else int(x) if dtype.kind in "ui" else float(x)


# ---- dtypes --------------------------------------------------------------------------------------


def converted(x: Term, source: DType, target: DType) -> Term:
    """x as another dtype."""
    if source is target:
        return x
    if is_whole(source) and is_whole(target):
        fits = source.bits <= target.bits or (isinstance(x, Sum) and _fits(x, target))
        return x if fits else _cast(x, source, target)
    if source.kind == "b":
        return choice(x, number(1, target), number(0, target))  # type: ignore[arg-type]
    value, exact = value_of(x), whole_of(x)
    if target.kind == "b":
        if exact is not None:
            return negated(compared(exact, True))
        cases = two_valued(x)
        return choice(cases[0], *map(Known, map(bool, cases[1:]))) if cases else _cast(x, source, target)
    if value is not None and math.isfinite(value) and not overflows(value, target):
        return number(value, target) if target.is_float or is_whole(target) else _cast(x, source, target)
    if target.is_float:
        cases = two_valued(x)
        if cases is not None and not any(overflows(float(c), target) for c in cases[1:]):
            return choice(cases[0], Number(float(cases[1])), Number(float(cases[2])))
        return Number(value) if value is not None and not math.isfinite(value) else _cast(x, source, target)
    if is_whole(target):
        if exact is not None:
            return exact
        if source.kind in "ui" and source.bits < target.bits and isinstance(x, (Item, Apply)):
            return one(x)
    return _cast(x, source, target)


def _cast(x: Term, source: DType, target: DType) -> Term:
    return sorted_(apply("cast", (x,), (source,), dtype=target), target)


def _fits(x: Sum, dtype: DType) -> bool:
    """Whether `dtype` holds x exactly: positions it does, ids of a tensor only where they are narrower."""
    bits = {"f32": 24, "f64": 53}.get(dtype.name, dtype.bits)
    return all(item.value.dtype.bits < bits or item.value.dtype is dtype for item in items(x))


def whole_of(x: Term) -> Sum | None:
    """The integer that x always is, exactly, if it is one."""
    if isinstance(x, Sum):
        return x
    if isinstance(x, Number):
        return whole(int(x.value)) if math.isfinite(x.value) and x.value == int(x.value) else None
    if isinstance(x, Choice):
        a, b = whole_of(x.a), whole_of(x.b)
        found = None if a is None or b is None else choice(x.condition, a, b)
        return found if isinstance(found, Sum) else None
    if not isinstance(x, Apply):
        return None
    if x.name == "cast":
        target = x.attrs["dtype"]
        inner = whole_of(x.args[0]) if not isinstance(x.args[0], CONDITIONS) else None
        return inner if inner is not None and target.name in EXACT and _fits(inner, target) else None
    if any(d.name not in EXACT and not is_whole(d) for d in x.dtypes):
        return None
    parts = [whole_of(a) for a in x.args if not isinstance(a, CONDITIONS)]
    if len(parts) < len(x.args) or None in parts:
        return None
    ring: dict[str, Callable[..., Sum]] = {
        "add": plus, "sub": lambda a, b: plus(a, b, -1), "neg": lambda a: scaled(a, -1), "mul": product,
        "abs": magnitude,
    }  # fmt: skip
    return ring[x.name](*parts) if x.name in ring else None


def _widened(x: Term, dtype: DType) -> Term:
    """x for a comparison: integers as sums."""
    if isinstance(x, CONDITIONS):
        return choice(x, ONE, ZERO)
    return one(x) if dtype.kind in "ui" and isinstance(x, (Item, Apply)) else x


# ---- integers ------------------------------------------------------------------------------------


def magnitude(x: Sum) -> Sum:
    """|x|."""
    low, high = bounds(x)
    if low is not None and at_least(low, 0):
        return x
    if high is not None and at_least(-high, 0):
        return scaled(x, -1)
    return one(apply("abs", (x,), (i64,)))


def _divided(op: Op, a: Sum, b: Sum) -> Sum | None:
    by, mode, low = b.constant, op.attrs["rounding_mode"], bounds(a)[0]
    if by is None or not at_least(by, 1):
        return None
    down = mode == "floor" or (mode == "trunc" and low is not None and at_least(low, 0))
    return quotient(a, by, op.types[0].dtype) if down else None


def _remainder(op: Op, a: Sum, b: Sum) -> Sum | None:
    by = b.constant
    if by is None or not at_least(by, 1):
        return None
    return plus(a, scaled(quotient(a, by, op.types[0].dtype), by), -1)


def _extremum(op: Op, a: Sum, b: Sum) -> Sum | None:
    low, high = bounds(plus(a, b, -1))
    if low is not None and at_least(low, 0):
        return a if op.name == "maximum" else b
    if high is not None and at_least(-high, 0):
        return b if op.name == "maximum" else a
    return None


INTEGER: dict[str, Callable[..., Sum | None]] = {
    "add": lambda op, a, b: plus(a, b),
    "sub": lambda op, a, b: plus(a, b, -1),
    "mul": lambda op, a, b: product(a, b),
    "neg": lambda op, a: scaled(a, -1),
    "abs": lambda op, a: magnitude(a),
    "div": _divided, "remainder": _remainder, "maximum": _extremum, "minimum": _extremum,
}  # fmt: skip
"""Integer arithmetic that is brought to normal form; None where it cannot be."""


# ---- conditions ----------------------------------------------------------------------------------


def _differ(a: Condition, b: Condition) -> Condition:
    return some((every((a, negated(b))), every((negated(a), b))))


LOGIC: dict[str, Callable[..., Condition]] = {
    "logical_and": lambda a, b: every((a, b)),
    "logical_or": lambda a, b: some((a, b)),
    "logical_xor": _differ,
    "logical_not": negated,
}

COMPARES = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}


def _compare(name: str, a: Term, b: Term) -> Condition | None:
    x, y = whole_of(a), whole_of(b)
    if x is None and y is not None and isinstance(a, Number):
        return _compare(MIRRORED.get(name, name), b, a)
    if x is not None and y is None and isinstance(b, Number):  # a number between integers, or beyond
        limit = b.value
        if math.isnan(limit) or name in ("eq", "ne"):
            return Known(name == "ne")
        if math.isinf(limit):
            return Known((limit > 0) == (name in ("lt", "le")))
        y = whole(math.floor(limit))
        return compared(plus(x, y, -1)) if name in ("lt", "le") else compared(plus(plus(y, ONE), x, -1))
    if x is None or y is None:
        return None
    gap = plus(x, y, -1)
    if name in ("eq", "ne"):
        return compared(gap, True) if name == "eq" else negated(compared(gap, True))
    if name in ("gt", "ge"):
        gap = scaled(gap, -1)
    return compared(plus(gap, ONE) if name in ("lt", "gt") else gap)
