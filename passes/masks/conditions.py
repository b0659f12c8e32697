"""Conditions and choices in one form: negations at the leaves, cases taken apart, what is known decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ...ir.dims import at_least
from .terms import (
    CONDITIONS,
    MOST,
    ONE,
    ZERO,
    All,
    Apply,
    Atom,
    Axis,
    Choice,
    Condition,
    Eq,
    Is,
    Item,
    Known,
    Le,
    Not,
    Some,
    Sum,
    Term,
    TooLargeError,
    bounds,
    one,
    plus,
    product,
    scaled,
    whole,
)  # fmt: skip

CASES = 2
"""A comparison of more things that have cases each is not taken apart."""

TRUE, FALSE = Known(True), Known(False)


def negated(c: Condition) -> Condition:
    """not c, with negations at the leaves."""
    if isinstance(c, Known):
        return Known(not c.value)
    if isinstance(c, Not):
        return c.condition
    if isinstance(c, Le):  # not s <= 0: 1 - s <= 0
        return Le(plus(ONE, c.sum, -1))
    if isinstance(c, All):
        return some(map(negated, c.parts))
    if isinstance(c, Some):
        return every(map(negated, c.parts))
    return Not(c)


def every(parts: Iterable[Condition]) -> Condition:
    """All of the parts."""
    return _joined(parts, All, Some)


def some(parts: Iterable[Condition]) -> Condition:
    """At least one of the parts."""
    return _joined(parts, Some, All)


def _joined(parts: Iterable[Condition], kind: Any, other: Any) -> Condition:
    absorbing = Known(kind is Some)
    found: set[Any] = set()
    for part in parts:
        if isinstance(part, Known):
            if part == absorbing:
                return part
        else:
            found |= part.parts if isinstance(part, kind) else {part}
    if len(found) > MOST:
        raise TooLargeError
    found = _bounded(found, kind is All)
    if any(negated(part) in found for part in found) or absorbing in found:
        return absorbing
    found = {p for p in found if not (isinstance(p, other) and p.parts & found)}
    if len(found) > 1 and all(isinstance(p, other) for p in found):
        shared = frozenset.intersection(*(p.parts for p in found))
        if shared:  # (a and b) or (a and c): a and (b or c)
            rest = [(every if other is All else some)(p.parts - shared) for p in found]
            return (every if other is All else some)([*shared, _joined(rest, kind, other)])
    return next(iter(found)) if len(found) == 1 else kind(frozenset(found)) if found else Known(kind is All)


def _bounded(found: set[Any], all_: bool) -> set[Any]:
    """Conditions without bounds that others imply; and False, or True, where two exclude, or cover, all."""
    ends: dict[frozenset[Any], Any] = {}
    rest = {p for p in found if not isinstance(p, Le)}
    for part in found - rest:
        form, start = plus(part.sum, whole(part.sum.start), -1).terms, part.sum.start
        other = ends.get(form, start)
        if at_least(start - other, 0) or at_least(other - start, 0):
            ends[form] = start if at_least(start - other, 0) == all_ else other
        else:
            rest.add(part)
    for form, start in ends.items():
        rest.add(Le(plus(Sum(form), whole(start))))
        opposite = ends.get(scaled(Sum(form), -1).terms)
        if opposite is not None and at_least(start + opposite - 1 if all_ else 1 - start - opposite, 0):
            rest.add(Known(not all_))
    return rest


def compared(x: Sum, equal: bool = False) -> Condition:
    """x <= 0, or x == 0; True or False where that is known, by cases where x has them."""
    low, high = bounds(x)
    if equal:
        if x == ZERO:
            return TRUE
        if (low is not None and at_least(low, 1)) or (high is not None and at_least(-high, 1)):
            return FALSE
    else:
        if high is not None and at_least(-high, 0):
            return TRUE
        if low is not None and at_least(low, 1):
            return FALSE
    open_cases = sum(len(atoms) == 1 and _cases(atoms[0]) is not None for atoms, _ in x.terms)
    for atoms, c in x.terms:
        if equal and len(x.terms) == 1 and len(atoms) > 1 and isinstance(c, int):
            return some(compared(one(atom), True) for atom in atoms)  # a product is 0
        if len(atoms) != 1 or not isinstance(c, int) or open_cases > CASES:
            continue
        cases = _cases(atoms[0])
        if cases is None:
            continue
        rest = Sum(x.terms - {(atoms, c)})
        either, (first, second) = cases[0], (compared(plus(rest, s, c), equal) for s in cases[1:])
        if isinstance(either, str):  # the greater or the smaller of two
            if not equal:
                return (every if (either == "max") == (c > 0) else some)((first, second))
            continue
        return some((every((either, first)), every((negated(either), second))))
    return Eq(min(x, scaled(x, -1), key=hash)) if equal else Le(x)


def _cases(atom: Atom) -> tuple[Condition | str, Sum, Sum] | None:
    """What an atom is by cases: (condition, then, else), or the "max" or "min" of two."""
    if isinstance(atom, Choice) and isinstance(atom.a, Sum) and isinstance(atom.b, Sum):
        return atom.condition, atom.a, atom.b
    if isinstance(atom, Apply) and all(isinstance(a, Sum) for a in atom.args):
        first: Any = atom.args[0]
        if atom.name == "abs":
            return "max", first, scaled(first, -1)
        if atom.name in ("maximum", "minimum"):
            return atom.name[:3], first, atom.args[1]  # type: ignore[return-value]
    return None


def choice(c: Condition, a: Term, b: Term) -> Term:
    """a if c else b, for a and b of one sort."""
    if isinstance(a, CONDITIONS) and isinstance(b, CONDITIONS):
        return some((every((c, a)), every((negated(c), b))))
    if isinstance(c, Known) or a == b:
        return a if a == b or c == TRUE else b
    if isinstance(c, Le) and isinstance(a, Sum) and isinstance(b, Sum) and _agree(c.sum, a, b):
        return b
    a, b = _assuming(c, a), _assuming(negated(c), b)
    inner, outer, swap = (a, b, False) if isinstance(_chosen(a), Choice) else (b, a, True)
    chosen = _chosen(inner)
    if isinstance(chosen, Choice) and outer in (chosen.a, chosen.b):
        here = negated(c) if swap else c
        if outer == chosen.b:
            return choice(every((here, chosen.condition)), chosen.a, chosen.b)
        return choice(every((here, negated(chosen.condition))), chosen.b, chosen.a)
    found = Choice(c, a, b)
    return one(found) if isinstance(a, Sum) else found


def _agree(x: Sum, a: Sum, b: Sum) -> bool:
    """Whether a == b wherever x <= 0: x is never below 0, and they differ by a multiple of it."""
    low, _ = bounds(x)
    if low is None or not at_least(low, 0):
        return False
    gap, (atoms, c) = plus(b, a, -1), min(x.terms, key=repr)
    many = dict(gap.terms).get(atoms, 0)
    return isinstance(many, int) and isinstance(c, int) and many % c == 0 and scaled(x, many // c) == gap


def _chosen(x: Term) -> Any:
    """The choice that x is, through an integer that is nothing else."""
    if isinstance(x, Sum) and len(x.terms) == 1:
        ((atoms, c),) = x.terms
        return atoms[0] if len(atoms) == 1 and c == 1 else x
    return x


def _assuming(c: Condition, x: Term) -> Term:
    """x where c holds."""
    chosen = _chosen(x)
    if isinstance(chosen, Choice):
        if chosen.condition == c:
            return chosen.a
        if chosen.condition == negated(c):
            return chosen.b
    return x


def replaced(x: Any, by: Callable[[Axis], Sum]) -> Any:
    """x with other indices, in normal form again."""
    if isinstance(x, Sum):
        total = ZERO
        for atoms, c in x.terms:
            term = whole(c)
            for atom in atoms:
                new = by(atom) if isinstance(atom, Axis) else replaced(atom, by)
                term = product(term, new if isinstance(new, Sum) else one(new))
            total = plus(total, term)
        return total
    if isinstance(x, Item):
        return Item(x.value, tuple(replaced(i, by) for i in x.at))
    if isinstance(x, Apply):
        return Apply(x.name, x.key, tuple(replaced(a, by) for a in x.args), x.dtypes, x.attrs)
    if isinstance(x, Choice):
        return choice(*(replaced(part, by) for part in (x.condition, x.a, x.b)))
    if isinstance(x, (Le, Eq)):
        return compared(replaced(x.sum, by), isinstance(x, Eq))
    if isinstance(x, Is):
        return Is(replaced(x.atom, by))
    if isinstance(x, Not):
        return negated(replaced(x.condition, by))
    if isinstance(x, (All, Some)):
        return (every if isinstance(x, All) else some)(replaced(p, by) for p in x.parts)
    return x
