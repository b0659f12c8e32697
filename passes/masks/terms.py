"""The language in which a mask is proved: one element of a tensor, as a formula over its indices.

An integer is a `Sum` in normal form, a condition a combination of `Le` and `Eq` of sums, and anything
else an `Item` of a tensor, an elementwise op applied (`Apply`) or a `Choice`. Integer arithmetic and
logic are brought to one form, so equal sums and conditions are mostly equal objects; arithmetic of
floats is kept as it is written, for it rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from ...ir import OPS, Dim, DType, OpDef, Value
from ...ir.attributes import attr_key
from ...ir.dims import at_least, floordiv, maximum, minimum

MOST = 64
"""A formula with more parts is not looked into."""


class TooLargeError(Exception):
    """A formula grew beyond what is worth proving."""


@dataclass(frozen=True)
class Axis:
    """An index that runs over 0 .. size - 1. place: 0 to 3 for [b, h, n, m]."""

    place: int
    size: Dim


@dataclass(frozen=True)
class Item:
    """An element of a tensor that is not looked into; a negative index counts from the end."""

    value: Value
    at: tuple[Sum, ...]


@dataclass(frozen=True)
class Apply:
    """An elementwise op on formulas, which have these dtypes."""

    name: str
    key: tuple[Any, ...]
    args: tuple[Term, ...]
    dtypes: tuple[DType, ...]
    attrs: Mapping[str, Any] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Choice:
    """a where the condition holds, else b."""

    condition: Condition
    a: Term
    b: Term


@dataclass(frozen=True)
class Number:
    """A float."""

    value: float


@dataclass(frozen=True)
class Sum:
    """An integer: the sum of coefficient * product of atoms. The empty product is 1."""

    terms: frozenset[tuple[Product, Dim]]

    @property
    def start(self) -> Dim:
        """What is added whatever the atoms are."""
        return next((c for product, c in self.terms if not product), 0)

    @property
    def constant(self) -> Dim | None:
        """The integer it is, when no atom is in it."""
        return self.start if all(not product for product, _ in self.terms) else None

    def linear(self) -> dict[Atom, Dim] | None:
        """Coefficients by atom; None when atoms are multiplied."""
        found: dict[Atom, Dim] = {}
        for product, c in self.terms:
            if len(product) > 1:
                return None
            found.update((atom, c) for atom in product)
        return found

    def slopes(self) -> dict[int, Dim] | None:
        """Coefficients by the place of an index; None when there is more in it than `start` and indices."""
        linear = self.linear()
        if linear is None or not all(isinstance(atom, Axis) for atom in linear):
            return None
        return {atom.place: c for atom, c in linear.items() if isinstance(atom, Axis)}


@dataclass(frozen=True)
class Known:
    """True or False."""

    value: bool


@dataclass(frozen=True)
class Le:
    """sum <= 0."""

    sum: Sum


@dataclass(frozen=True)
class Eq:
    """sum == 0."""

    sum: Sum


@dataclass(frozen=True)
class Is:
    """A bool that is not looked into."""

    atom: Item | Apply


@dataclass(frozen=True)
class Not:
    """The opposite."""

    condition: Condition


@dataclass(frozen=True)
class All:
    """Every one of several."""

    parts: frozenset[Condition]


@dataclass(frozen=True)
class Some:
    """At least one of several."""

    parts: frozenset[Condition]


Atom = Union[Axis, Item, Apply, Choice]  # noqa: UP007
Product = tuple[Atom, ...]
Condition = Union[Known, Le, Eq, Is, Not, All, Some]  # noqa: UP007
Term = Union[Sum, Number, Item, Apply, Choice, Condition]  # noqa: UP007

CONDITIONS = (Known, Le, Eq, Is, Not, All, Some)


# ---- integers ------------------------------------------------------------------------------------


def collected(terms: Iterable[tuple[Product, Dim]]) -> Sum:
    """The sum of products, like ones together."""
    total: dict[Product, Dim] = {}
    for product, c in terms:
        total[product] = total.get(product, 0) + c
    if len(total) > MOST:
        raise TooLargeError
    return Sum(frozenset((p, c) for p, c in total.items() if c != 0))


def whole(number: Dim) -> Sum:
    """An integer or dim."""
    return Sum(frozenset({((), number)} if number != 0 else ()))


ZERO, ONE = whole(0), whole(1)


def one(atom: Atom) -> Sum:
    """An atom."""
    return Sum(frozenset({((atom,), 1)}))


def plus(a: Sum, b: Sum, times: Dim = 1) -> Sum:
    """a + times * b."""
    return collected([*a.terms, *((p, c * times) for p, c in b.terms)])


def scaled(a: Sum, by: Dim) -> Sum:
    """a * by."""
    return collected((p, c * by) for p, c in a.terms)


def product(a: Sum, b: Sum) -> Sum:
    """a * b."""
    return collected((tuple(sorted((*p, *q), key=hash)), c * d) for p, c in a.terms for q, d in b.terms)


def bounds(x: Sum) -> tuple[Dim | None, Dim | None]:
    """The least and the greatest it can be; None where that is not known."""
    low: Dim | None = 0
    high: Dim | None = 0
    for atoms, c in x.terms:
        least, most = (1, 1) if not atoms else _range(atoms[0]) if len(atoms) == 1 else (None, None)
        if at_least(-c, 1):
            least, most = most, least
        elif not at_least(c, 1):
            return None, None
        low = None if low is None or least is None else low + c * least
        high = None if high is None or most is None else high + c * most
    return low, high


def _range(atom: Atom) -> tuple[Dim | None, Dim | None]:
    if isinstance(atom, Axis):
        return 0, atom.size - 1
    if isinstance(atom, Choice) and isinstance(atom.a, Sum) and isinstance(atom.b, Sum):
        (a, b), (c, d) = bounds(atom.a), bounds(atom.b)
        low = None if a is None or c is None else minimum(a, c)
        return low, None if b is None or d is None else maximum(b, d)
    if isinstance(atom, Apply) and atom.name == "abs":
        return 0, None
    if isinstance(atom, Apply) and (by := divisor(atom)) is not None:
        low, high = bounds(atom.args[0])  # type: ignore[arg-type]
        return (None if low is None else floordiv(low, by), None if high is None else floordiv(high, by))
    return None, None


def divisor(atom: Term) -> Dim | None:
    """c of an atom x // c with c >= 1, else None."""
    if isinstance(atom, Apply) and atom.name == "div" and atom.attrs.get("rounding_mode") == "floor":
        by = atom.args[1].constant if isinstance(atom.args[1], Sum) else None
        return by if by is not None and at_least(by, 1) and isinstance(atom.args[0], Sum) else None
    return None


def quotient(x: Sum, by: Dim, dtype: DType) -> Sum:
    """x // by, rounded down, for by >= 1."""
    multiples = {(atoms, c) for atoms, c in x.terms if atoms and floordiv(c, by) * by == c}
    out, left = collected((p, floordiv(c, by)) for p, c in multiples), Sum(x.terms - multiples)
    constant = left.constant
    if constant is not None:
        return plus(out, whole(floordiv(constant, by)))
    low, high = bounds(left)
    if low is not None and high is not None and at_least(low, 0) and at_least(by - 1 - high, 0):
        return out
    return plus(out, one(apply("div", (left, whole(by)), (dtype, dtype), rounding_mode="floor")))


def apply(name: str, args: tuple[Term, ...], dtypes: tuple[DType, ...], **attrs: Any) -> Apply:
    """An elementwise op, not looked into."""
    defn: OpDef = OPS[name]
    given = {a.name: attrs.get(a.name, a.default) for a in defn.attrs}
    return Apply(name, attr_key(given), args, dtypes, given)


# ---- walking -------------------------------------------------------------------------------------


def children(x: Any) -> Iterator[Any]:
    """The formulas right under x."""
    if isinstance(x, Sum):
        for atoms, _ in x.terms:
            yield from atoms
    elif isinstance(x, Item):
        yield from x.at
    elif isinstance(x, Apply):
        yield from x.args
    elif isinstance(x, Choice):
        yield from (x.condition, x.a, x.b)
    elif isinstance(x, (Le, Eq)):
        yield x.sum
    elif isinstance(x, Is):
        yield x.atom
    elif isinstance(x, Not):
        yield x.condition
    elif isinstance(x, (All, Some)):
        yield from x.parts


def places(x: Any) -> frozenset[int]:
    """The axes that x depends on."""
    if isinstance(x, Axis):
        return frozenset({x.place})
    return frozenset().union(*map(places, children(x)))


def items(x: Any) -> Iterator[Item]:
    """The elements of tensors in x."""
    if isinstance(x, Item):
        yield x
    for child in children(x):
        yield from items(child)
