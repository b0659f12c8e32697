"""Symbolic dimensions: integer polynomials in canonical form, equal only if provably equal.

A `Dim` is an `int` or a `Poly`. A `Poly` is a sum of `coefficient * monomial`, a monomial a product
of powers of atoms, and an atom either the name of a symbol (`"n"`) or a `Call`: a floor division,
minimum or maximum that does not simplify. Two dims compare equal iff their canonical forms are the
same, so an unknown relation is always "not equal". A symbol stands for any integer >= 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Union

from .errors import IRError

MAX_TERMS = 64
"""A polynomial with more terms is refused: shapes of real models have a handful."""


class Call:
    """`floordiv(a, b)`, `min(a, b)` or `max(a, b)` of dims that could not be simplified."""

    __slots__ = ("args", "fn", "text")

    def __init__(self, fn: str, *args: Dim):
        self.fn, self.args = fn, args
        left, right = (f"({a})" if isinstance(a, Poly) else str(a) for a in args)
        self.text = f"({left}//{right})" if fn == "floordiv" else f"{fn}({args[0]}, {args[1]})"

    def __str__(self) -> str:
        return self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and self.text == other.text


Atom = Union[str, Call]  # noqa: UP007 - a runtime alias that names a later class
Monomial = tuple[tuple[Atom, int], ...]


def _rank(term: tuple[Monomial, int]) -> tuple[int, list[str]]:
    """Degree, then alphabet: an order that products keep, so that division finds its lead terms."""
    factors = [str(atom) for atom, power in term[0] for _ in range(power)]
    return -len(factors), factors


def _times(a: Monomial, b: Monomial) -> Monomial:
    powers: dict[Atom, int] = dict(a)
    for atom, power in b:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: str(item[0])))


def _over(a: Monomial, b: Monomial) -> Monomial | None:
    powers: dict[Atom, int] = dict(a)
    for atom, power in b:
        left = powers.get(atom, 0) - power
        if left < 0:
            return None
        powers[atom] = left
    return tuple((atom, power) for atom, power in powers.items() if power)


class Poly:
    """A polynomial over symbols with integer coefficients; never a constant (that is an `int`)."""

    __slots__ = ("_hash", "terms")
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]):
        self.terms = terms
        self._hash = hash(terms)

    def __add__(self, other: Dim) -> Dim:
        return _sum(self, other)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return _sum(self, -other)

    def __rsub__(self, other: Dim) -> Dim:
        return _sum(other, -self)

    def __mul__(self, other: Dim) -> Dim:
        if not isinstance(other, (int, Poly)):
            return NotImplemented
        total: dict[Monomial, int] = {}
        for ma, ca in self.terms:
            for mb, cb in _terms(other):
                m = _times(ma, mb)
                total[m] = total.get(m, 0) + ca * cb
        return _canonical(total)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return self - floordiv(self, other) * other

    def __rmod__(self, other: Dim) -> Dim:
        return other - floordiv(other, self) * self

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly) and self.terms == other.terms

    def __bool__(self) -> bool:
        raise IRError(f"the truth of dimension {self} is unknown; compare it with ==")

    def __str__(self) -> str:
        parts: list[str] = []
        for monomial, coefficient in self.terms:
            factors = [str(atom) for atom, power in monomial for _ in range(power)]
            size = abs(coefficient)
            text = "*".join(([str(size)] if size != 1 or not factors else []) + factors)
            sign = "-" if coefficient < 0 else "+"
            parts.append(f" {sign} {text}" if parts else (f"-{text}" if sign == "-" else text))
        return "".join(parts)

    __repr__ = __str__


Dim = Union[int, Poly]  # noqa: UP007 - a runtime alias, also used by isinstance


RESERVED = {"True", "False", "None", "none", "graph", "inf", "nan", "min", "max"}
"""Words that are no symbol: the text form reads them otherwise. types.py adds the dtypes."""


def symbol(name: str) -> Poly:
    """The dimension named `name`. Raises IRError where the text form could not say it."""
    if not (name.isascii() and name.isidentifier()) or name in RESERVED:
        raise IRError(f"{name!r} cannot name a dimension")
    return Poly(((((name, 1),), 1),))


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(dim, Poly):
        return dim.terms
    return (((), int(dim)),) if dim else ()


def _canonical(total: Mapping[Monomial, int]) -> Dim:
    terms = [(m, c) for m, c in total.items() if c]
    if not terms:
        return 0
    if len(terms) == 1 and not terms[0][0]:
        return terms[0][1]
    if len(terms) > MAX_TERMS:
        raise IRError(f"a dimension with {len(terms)} terms; the limit is {MAX_TERMS}")
    return Poly(tuple(sorted(terms, key=_rank)))


def _sum(a: Dim, b: Dim) -> Dim:
    if not isinstance(b, (int, Poly)):
        return NotImplemented
    total = dict(_terms(a))
    for monomial, coefficient in _terms(b):
        total[monomial] = total.get(monomial, 0) + coefficient
    return _canonical(total)


def floordiv(a: Dim, b: Dim) -> Dim:
    """`a // b` rounded down; exact where the division is provable, else a `Call` atom."""
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            raise IRError(f"dimension {a} divided by zero")
        return a // b
    if b == 0:
        raise IRError(f"dimension {a} divided by zero")
    quotient, rest = _divide(a, b)
    if rest == 0:
        return quotient
    if isinstance(rest, int) and isinstance(b, int):
        return quotient + rest // b  # (q*b + r) // b == q + r // b for any integers
    if isinstance(b, int):  # (q*b*m + r) // b == q*m + r // b: every coefficient into [0, b)
        whole = _canonical({m: c // b for m, c in _terms(rest)})
        quotient, rest = quotient + whole, rest - whole * b
        if isinstance(rest, int):
            return quotient
        shared = math.gcd(b, *(c for m, c in _terms(rest) if m))
        if shared > 1 and b > 0:  # (g*p + r) // (g*b) == p // b for 0 <= r < g
            small = _canonical({m: c // shared for m, c in _terms(rest)})
            return quotient + floordiv(small, b // shared)
        for monomial, coefficient in _terms(rest):  # (x//a + r) // b == (x + a*r) // (a*b)
            inner = monomial[0][0] if len(monomial) == 1 and monomial[0][1] == coefficient == 1 else None
            if isinstance(inner, Call) and inner.fn == "floordiv" and b > 0:
                x, a = inner.args
                if isinstance(a, int) and a > 0:
                    return quotient + floordiv(x + (rest - Poly(((monomial, 1),))) * a, a * b)
    return quotient + Poly((((((Call("floordiv", rest, b)), 1),), 1),))


def _divide(a: Dim, b: Dim) -> tuple[Dim, Dim]:
    """Polynomial division: `a == quotient * b + rest`, taking out every term b's lead divides."""
    lead, by = _terms(b)[0]
    if len(_terms(b)) > 1:  # all or nothing: a partial division by a sum is no simplification
        quotient: Dim = 0
        rest = a
        while rest != 0:
            monomial, coefficient = _terms(rest)[0]
            over = _over(monomial, lead)
            if over is None or coefficient % by:
                return 0, a
            step = _canonical({over: coefficient // by})
            quotient, rest = quotient + step, rest - step * b
        return quotient, rest
    whole: dict[Monomial, int] = {}
    left: dict[Monomial, int] = {}
    for monomial, coefficient in _terms(a):
        over = _over(monomial, lead)
        if over is not None and coefficient % by == 0:
            whole[over] = coefficient // by
        else:
            left[monomial] = coefficient
    return _canonical(whole), _canonical(left)


def ceildiv(a: Dim, b: Dim) -> Dim:
    """`a // b` rounded up."""
    return -floordiv(-a, b) if isinstance(a, int) else floordiv(a + b - 1, b)


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller of two dims; a `Call` atom where neither is provably smaller."""
    return _extremum("min", a, b)


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger of two dims; a `Call` atom where neither is provably larger."""
    return _extremum("max", a, b)


def _extremum(fn: str, a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b) if fn == "min" else max(a, b)
    gap = a - b
    if at_least(gap, 0):
        return b if fn == "min" else a
    if at_least(-gap, 0):
        return a if fn == "min" else b
    a, b = sorted((a, b), key=str)
    return Poly((((((Call(fn, a, b)), 1),), 1),))


def at_least(dim: Dim, bound: int) -> bool:
    """True iff `dim >= bound` is provable from symbols being >= 0 (False means unknown)."""
    if isinstance(dim, int):
        return dim >= bound
    constant = sum(c for m, c in dim.terms if not m)
    return constant >= bound and all(c >= 0 and _plain(m) for m, c in dim.terms if m)


def _plain(monomial: Monomial) -> bool:
    """Whether every atom is provably >= 0."""
    return all(
        isinstance(atom, str) or (all(at_least(arg, 0) for arg in atom.args))
        for atom, _ in monomial
    )


def symbols(dims: Dim | Iterable[Dim]) -> Iterator[str]:
    """Names of the symbols in `dims`, in order of appearance, with repeats."""
    for dim in (dims,) if isinstance(dims, (int, Poly)) else dims:
        if isinstance(dim, Poly):
            for monomial, _ in dim.terms:
                for atom, _power in monomial:
                    if isinstance(atom, str):
                        yield atom
                    else:
                        yield from symbols(atom.args)


def substitute(dim: Dim, env: Mapping[str, Dim]) -> Dim:
    """`dim` with symbols replaced by the dims in `env`; other symbols stay."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, coefficient in dim.terms:
        term: Dim = coefficient
        for atom, power in monomial:
            base = env.get(atom, symbol(atom)) if isinstance(atom, str) else _apply(atom, env)
            for _ in range(power):
                term = term * base
        total = total + term
    return total


def _apply(call: Call, env: Mapping[str, Dim]) -> Dim:
    a, b = (substitute(arg, env) for arg in call.args)
    return {"floordiv": floordiv, "min": minimum, "max": maximum}[call.fn](a, b)


def evaluate(dim: Dim, env: Mapping[str, int]) -> int:
    """The integer value of `dim`. Raises IRError when a symbol has no value in `env`."""
    value = substitute(dim, env)
    if not isinstance(value, Poly):  # an int, or what stands for one while torch traces
        return value
    missing = sorted(set(symbols(value)))
    raise IRError(f"dimension {dim} needs a value for {', '.join(missing)}")
