"""Factors of scores that are decays: D_ij = r_i c_j exp(G_i - G_j), read off one element of D.

gamma ** (i - j), exp((i - j) log gamma), differences of running sums, and the masked running sums of
Mamba-2 (`segsum`) are all products of what each token between j and i leaves: a recurrence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..ir import Dim, Graph, IRError, No, Value
from ..ir.interpret import evaluate
from ..ir.ops.activation import as_dtype
from ..ir.ops.elementwise import reciprocal
from ..ir.ops.shape import cat, expand, reshape, slice_
from ..ir.types import DType, f32, f64
from .masks.added import Product, expanded
from .masks.arithmetic import value_of
from .masks.build import along, made
from .masks.conditions import TRUE, compared, every, negated, replaced
from .masks.element import Reader
from .masks.factors import element_of, parts
from .masks.naming import Band
from .masks.terms import (
    ONE,
    ZERO,
    Apply,
    Axis,
    Choice,
    Item,
    Number,
    Sum,
    Term,
    TooLargeError,
    apply,
    items,
    one,
    places,
    plus,
    scaled,
)

POSITIVE = frozenset({"exp", "exp2", "sigmoid"})
"""Functions whose values are greater than 0."""


@dataclass(frozen=True)
class Decay:
    """D [b or 1, h or 1, n, n] as rows * columns * exp(sums of log decays), 0 where j > i if `causal`.

    log: [b or 1, h or 1, n or 1, 1], of each token; None for no decay. rows: [.., .., n or 1, 1] and
    columns: [.., .., 1, n or 1] factors, None for 1.
    """

    log: Value | None
    rows: Value | None
    columns: Value | None
    causal: bool

    @property
    def shared(self) -> bool:
        """Whether it is the same for all sequences and heads."""
        parts = (self.log, self.rows, self.columns)
        return all(x is None or x.shape[0] == x.shape[1] == 1 for x in parts)

    def of(self, b: Dim, h: Dim, n: Dim) -> Value | None:
        """The log decay as `linear_attention` takes it, [h] or [b, h, n]."""
        if self.log is None:
            return None
        if self.log.shape[0] == self.log.shape[2] == 1:
            return reshape(expand(self.log, size=(1, h, 1, 1)), shape=(h,))
        return reshape(expand(self.log, size=(b, h, n, 1)), shape=(b, h, n))


class NoDecayError(Exception):
    """Why a factor is not a decay; "" where there is nothing to say."""


def decay_of(x: Value) -> Decay | No | None:
    """What a factor [.., n, n] of scores is, if it is a decay; a No where it nearly is."""
    if not 2 <= x.rank <= 4 or x.shape[-1] != x.shape[-2] or x.shape[-1] == 1 or not x.dtype.is_float:
        return None
    try:
        element, axes = element_of(x)
        found = _Factors(axes[2], axes[3], f64 if x.dtype is f64 else f32)
        found.take(element)
        return found.told()
    except NoDecayError as error:
        return No(str(error), x) if str(error) else None
    except (TooLargeError, IRError):
        return None


@dataclass
class _Factors:
    """An element taken apart as it is read."""

    i: Axis
    j: Axis
    dtype: DType
    keep: Any = TRUE
    exponent: dict[Product, float] = field(default_factory=dict)
    logs: list[tuple[float, Term]] = field(default_factory=list)  # what each token adds to the exponent
    rows: list[tuple[Term, int]] = field(default_factory=list)  # and the power it is taken to
    columns: list[tuple[Term, int]] = field(default_factory=list)

    def take(self, x: Term, power: int = 1) -> None:
        """A factor of the element, or a divisor of it."""
        if 3 not in places(x) and value_of(x) != 0:
            self.rows.append((x, power))
        elif 2 not in places(x):
            self.columns.append((x, power))
        elif isinstance(x, Choice) and power == 1 and 0 in (value_of(x.a), value_of(x.b)):
            first = value_of(x.b) == 0
            self.keep = every((self.keep, x.condition if first else negated(x.condition)))
            self.take(x.a if first else x.b)
        elif isinstance(x, Apply) and x.name == "mul":
            self.take(x.args[0], power)
            self.take(x.args[1], power)
        elif isinstance(x, Apply) and x.name == "div" and x.attrs["rounding_mode"] is None:
            self.take(x.args[0], power)
            self.take(x.args[1], -power)
        elif isinstance(x, Apply) and x.name == "reciprocal":
            self.take(x.args[0], -power)
        elif isinstance(x, Apply) and x.name == "cast" and x.dtypes[0].is_float:
            self.take(x.args[0], power)
        elif isinstance(x, Apply) and x.name in ("exp", "exp2"):
            self.raised(x.args[0], power * (1.0 if x.name == "exp" else math.log(2)))
        elif isinstance(x, Apply) and x.name == "pow":
            number, log = _log(x.args[0], x.dtypes[0] if x.dtypes[0].is_float else self.dtype)
            for p, c in expanded(x.args[1]).items():
                self.sum_up((*p, *log), c * number * power)
        else:
            raise NoDecayError

    def raised(self, x: Term, by: float) -> None:
        """exp(by * x)."""
        if isinstance(x, Choice) and by > 0 and -math.inf in (value_of(x.a), value_of(x.b)):
            first = value_of(x.b) == -math.inf
            self.keep = every((self.keep, x.condition if first else negated(x.condition)))
            self.raised(x.a if first else x.b, by)
        elif isinstance(x, Apply) and x.name in ("add", "sub"):
            self.raised(x.args[0], by)
            self.raised(x.args[1], by if x.name == "add" else -by)
        elif isinstance(x, Apply) and x.name == "cast" and x.dtypes[0].is_float:
            self.raised(x.args[0], by)
        elif isinstance(x, Item) and (own := self.summed(x)) is not None:
            self.logs.append((by, own))
        else:
            for p, c in expanded(x).items():
                self.sum_up(p, c * by)

    def sum_up(self, p: Product, c: float) -> None:
        """c times a product, in the exponent; a distance that is 0 or more where j <= i is i - j."""
        for k, atom in enumerate(p):
            gap = self.distance(atom)
            if gap:
                rest = (*p[:k], *p[k + 1 :])
                self.sum_up((*rest, self.i), c * gap)
                self.sum_up((*rest, self.j), -c * gap)
                return
        p = tuple(sorted(p, key=hash))
        self.exponent[p] = self.exponent.get(p, 0.0) + c

    def distance(self, x: Any) -> int:
        """1 where x is i - j for all j <= i, else 0."""
        if not isinstance(x, Apply) or not isinstance(x.args[0], Sum):
            return 0
        inner, gap = x.args[0], plus(one(self.i), one(self.j), -1)
        if x.name == "abs":
            return int(inner in (gap, scaled(gap, -1)))
        if x.name == "clamp":
            return int(inner == gap and x.attrs["min"] == 0 and x.attrs.get("max") is None)
        return int(x.name in ("maximum", "relu") and inner == gap and all(a == ZERO for a in x.args[1:]))

    def summed(self, x: Item) -> Term | None:
        """a_t where x is the sum of a_t over j < t <= i: a running sum of what was masked before."""
        op = x.value.op
        dim = op.attrs["dim"] if op.name == "cumsum" else None
        if (
            dim is None
            or x.at[dim] != one(self.i)
            or any(2 in places(p) for k, p in enumerate(x.at) if k != dim)
        ):
            return None
        token = Axis(5, self.i.size)
        inner = Reader().read(op.args[0], (*x.at[:dim], one(token), *x.at[dim + 1 :]))
        later = compared(plus(plus(one(self.j), ONE), one(token), -1))
        if not isinstance(inner, Choice) or inner.condition not in (later, negated(later)):
            return None
        a, zero = (inner.a, inner.b) if inner.condition == later else (inner.b, inner.a)
        if value_of(zero) != 0 or 3 in places(a):
            return None
        return _moved(a, token, self.i)

    def told(self) -> Decay | None:
        """The decay. Raises NoDecayError."""
        band = Band()
        if not all(band.take(c) for c in parts(self.keep)) or band.least is not None:
            raise NoDecayError
        if band.greatest not in (None, 0):
            raise NoDecayError("it decays with the distance, but not from the token itself on")
        queries = {p: c for p, c in self.exponent.items() if c and 3 not in _places(p)}
        keys = {p: c for p, c in self.exponent.items() if c and 3 in _places(p)}
        back = {_sorted(_moved(a, self.i, self.j) for a in p): -c for p, c in queries.items()}
        if back != {_sorted(p): c for p, c in keys.items()}:
            raise NoDecayError("its exponent is not proved to be a sum over the tokens between key and query")
        logs = [*self.logs, *(pair for p, c in queries.items() for pair in [self.step(p, c)])]
        log = None
        for c, x in logs:
            part = x if isinstance(x, Value) else along(made(x, self.dtype), 0, 1, 2, 3)
            part = as_dtype(part, self.dtype) * c if c != 1 else as_dtype(part, self.dtype)
            log = part if log is None else log + part
        if log is None and self.keep == TRUE:
            return None
        return Decay(log, self.product(self.rows), self.product(self.columns), band.greatest == 0)

    def step(self, p: Product, c: float) -> tuple[float, Any]:
        """What a term of the exponent grows by from a token to the next."""
        here = [a for a in p if 2 in places(a)]
        rest = tuple(a for a in p if 2 not in places(a))
        if here == [self.i]:
            return (c, self.value(rest)) if rest else (1, Number(c))
        (x,) = here if len(here) == 1 else (None,)
        if isinstance(x, Item) and x.value.op.name == "cumsum":
            dim = x.value.op.attrs["dim"]
            if x.at[dim] == one(self.i) and not _elsewhere(x, dim):
                return c, self.value((*rest, Item(x.value.op.args[0], x.at)))
        total = self.value(p)
        n = self.i.size
        if total.shape[2] != n:
            raise NoDecayError
        first = slice_(total, dim=2, start=0, end=1)
        grown = slice_(total, dim=2, start=1, end=n) - slice_(total, dim=2, start=0, end=n - 1)
        return c, cat(first, grown, dim=2)  # of the first token nothing is left to decay

    def value(self, p: Iterable[Any]) -> Value:
        """A product of formulas, with four axes."""
        total: Value | None = None
        for x in p:
            part = as_dtype(made(one(x) if isinstance(x, Axis) else x, self.dtype), self.dtype)
            total = part if total is None else total * part
        assert total is not None
        return along(total, 0, 1, 2, 3)

    def product(self, factors: Iterable[tuple[Term, int]]) -> Value | None:
        """Factors and divisors multiplied; None for 1."""
        total: Value | None = None
        number = 1.0
        for x, power in factors:
            value = value_of(x)
            if value is not None:
                number *= float(value) ** power
                continue
            part = as_dtype(along(made(x, self.dtype), 0, 1, 2, 3), self.dtype)
            if power == -1:
                total = reciprocal(part) if total is None else total / part
            else:
                total = part if total is None else total * part
        if number == 1:
            return total
        return along(made(Number(number), self.dtype), 0, 1, 2, 3) if total is None else total * number


def _moved(x: Any, source: Axis, target: Axis) -> Any:
    if x == source:
        return target
    if isinstance(x, Axis):
        return x
    return replaced(x, lambda a: one(target) if a == source else one(a))


def _elsewhere(x: Item, dim: int) -> bool:
    """Whether the query is in another index of x too."""
    return any(2 in places(p) for k, p in enumerate(x.at) if k != dim)


def _places(p: Product) -> frozenset[int]:
    return frozenset().union(*(places(x) for x in p))


def _sorted(p: Iterable[Any]) -> Product:
    return tuple(sorted(p, key=hash))


def _log(base: Term, dtype: DType) -> tuple[float, Product]:
    """log(base) as a number times a formula. Raises NoDecayError where the base may be negative."""
    value = value_of(base)
    if value is not None and value > 0:
        return math.log(value), ()
    if isinstance(base, Apply) and base.name == "exp":
        return 1.0, (base.args[0],)
    if not _positive(base):
        raise NoDecayError("what it takes to a power is not proved to be positive")
    return 1.0, (apply("log", (base,), (dtype,)),)


def _positive(x: Term) -> bool:
    """Whether x > 0 everywhere: by what it is, or computed where it depends on no data."""
    if isinstance(x, Apply) and x.name in POSITIVE:
        return True
    if any(True for _ in items(x)) or not places(x) <= {1}:
        return False
    ((value,), _) = evaluate(Graph("base", (), (made(x, f64),)), [])
    return bool((value > 0).all())
