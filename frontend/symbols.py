"""Symbolic sizes: torch's sympy expressions as `Dim`s, and its guards as checks of a call.

sympy is never imported: an expression is read by the names of its node classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..ir import CaptureError, Dim, symbol
from ..ir.dims import RESERVED, at_least, ceildiv, evaluate, floordiv, maximum, minimum, symbols

_RELATIONS: dict[str, tuple[str, Callable[[int, int], bool]]] = {
    "Equality": ("==", lambda a, b: a == b),
    "Unequality": ("!=", lambda a, b: a != b),
    "StrictLessThan": ("<", lambda a, b: a < b),
    "LessThan": ("<=", lambda a, b: a <= b),
    "StrictGreaterThan": (">", lambda a, b: a > b),
    "GreaterThan": (">=", lambda a, b: a >= b),
}
_SINGLETONS = ("Zero", "One", "NegativeOne", "Integer")


class InexpressibleError(Exception):
    """An expression outside integer polynomials, floor division, minimum and maximum."""


@dataclass(frozen=True, slots=True)
class Check:
    """A relation between sizes that capture relied on. `holds` says whether sizes satisfy it.

    parts: `(left, relation, right)` triples joined by `joint`, "and" or "or"; `truth` is what the
    whole was at capture. where: the user's line that decided it, or "".
    """

    parts: tuple[tuple[Dim, str, Dim], ...]
    joint: str = "and"
    truth: bool = True
    where: str = ""

    def holds(self, env: Mapping[str, int]) -> bool:
        """Whether the relation is what it was at capture. Raises IRError for a missing symbol."""
        tests = {text: test for text, test in _RELATIONS.values()}
        results = [tests[r](evaluate(a, env), evaluate(b, env)) for a, r, b in self.parts]
        return (all(results) if self.joint == "and" else any(results)) == self.truth

    @property
    def proved(self) -> bool:
        """Whether it holds for all sizes >= 0, so that no call need be asked."""
        if self.joint == "or" or not self.truth:
            return False
        return all(
            (r == ">=" and at_least(a - b, 0)) or (r == ">" and at_least(a - b, 1))
            or (r == "<=" and at_least(b - a, 0)) or (r == "<" and at_least(b - a, 1))
            or (r == "==" and a == b)
            for a, r, b in self.parts
        )  # fmt: skip

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols it is about."""
        return frozenset(symbols(side for a, _, b in self.parts for side in (a, b)))

    def __str__(self) -> str:
        text = f" {self.joint} ".join(f"{a} {r} {b}" for a, r, b in self.parts)
        return text if self.truth else f"not ({text})"


@dataclass
class Names:
    """Readable names for torch's symbols: those the user gave, else s0, s1, ... and u0, u1, ...

    given: torch's symbol name -> the name of the `Dim` the user passed. unbacked: the names of the
    data-dependent ones, whose value is known only while the graph runs. truths: torch's names of those
    that were truth values, 0 or 1.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    unbacked: set[str] = field(default_factory=set)
    truths: set[str] = field(default_factory=set)

    def __call__(self, torch_name: str) -> str:
        """The name of a symbol; the same one every time."""
        name = self.chosen.get(torch_name)
        if name is None:
            name = self.given.get(torch_name)
            own = name is not None and name not in RESERVED  # a Dim may be called f32; the text cannot
            taken = {*self.chosen.values(), *self.given.values(), *RESERVED}
            prefix = "u" if torch_name.startswith("u") else "s"
            while name is None or (name in taken and not own):
                count = self.counts.get(prefix, 0)
                self.counts[prefix] = count + 1
                name = f"{prefix}{count}"
            self.chosen[torch_name] = name
            if torch_name.startswith("u"):
                self.unbacked.add(name)
        return name

    def dim(self, size: Any) -> Dim:
        """An int or SymInt as a Dim. Raises CaptureError naming an expression that is none."""
        if isinstance(size, int):
            return int(size)
        node = size.node
        constant = node.maybe_as_int()
        if constant is not None:
            return constant
        try:
            return self.expression(node.expr)
        except InexpressibleError as error:
            raise CaptureError(
                f"a size in this model is {node.expr}, and {error} is no polynomial, floor "
                "division, minimum or maximum of sizes; make the sizes it is computed from static "
                "(leave them out of dynamic_shapes)"
            ) from None

    def truth(self, expr: Any) -> Dim | None:
        """The symbol of a truth value that was read out of a tensor, Eq(u, 1) to torch; None otherwise."""
        if type(expr).__name__ != "Equality" or type(expr.args[0]).__name__ != "Symbol" or expr.args[1] != 1:
            return None
        self.truths.add(expr.args[0].name)
        return symbol(self(expr.args[0].name))

    def expression(self, expr: Any) -> Dim:
        """A sympy integer expression as a Dim. Raises InexpressibleError."""
        kind = type(expr).__name__
        if kind == "Symbol":
            return symbol(self(expr.name))
        if kind in _SINGLETONS or getattr(expr, "is_Integer", False):
            return int(expr)
        if kind in ("CeilToInt", "FloorToInt", "TruncToInt"):
            (inner,) = expr.args
            if type(inner).__name__ == "IntTrueDiv":
                a, b = map(self.expression, inner.args)
                return ceildiv(a, b) if kind == "CeilToInt" else floordiv(a, b)
            whole, rest = self._shifted(inner)
            if kind != "TruncToInt":  # torch.arange(0.5, n) has ceil(n - 0.5) elements
                return whole + (math.ceil(rest) if kind == "CeilToInt" else math.floor(rest))
        if kind == "Piecewise":  # a truth value as a number: 1 where Eq(u, 1), 0 elsewhere
            (one, condition), *others = (part.args for part in expr.args)
            named = {getattr(arg, "name", "") for arg in condition.args}
            if one == 1 and named & self.truths and str(others) == "[(0, True)]":
                return self.expression(condition.args[0])
        if kind == "Pow" and getattr(expr.args[1], "is_Integer", False) and int(expr.args[1]) > 0:
            base = self.expression(expr.args[0])
            return _fold(lambda a, b: a * b, [base] * int(expr.args[1]))
        combine = _COMBINE.get(kind)
        if combine is None:
            raise InexpressibleError(f"{kind}({', '.join(map(str, expr.args))})")
        return _fold(combine, [self.expression(arg) for arg in expr.args])

    def _shifted(self, expr: Any) -> tuple[Dim, float]:
        """A float expression as a whole size and a constant on top of it. Raises InexpressibleError."""
        kind = type(expr).__name__
        if getattr(expr, "is_number", False):
            return 0, float(expr)
        if kind == "ToFloat":
            return self.expression(expr.args[0]), 0.0
        if kind == "Add":
            parts = [self._shifted(arg) for arg in expr.args]
            return _fold(lambda a, b: a + b, [whole for whole, _ in parts]), sum(rest for _, rest in parts)
        if kind == "FloatTrueDiv" and expr.args[1].is_number and float(expr.args[1]) == 1.0:
            return self._shifted(expr.args[0])
        raise InexpressibleError(f"{kind}({', '.join(map(str, expr.args))})")

    def check(self, expr: Any, truth: bool = True, where: str = "") -> Check | None:
        """A boolean expression as a Check; None when it cannot be said with Dims."""
        kind = type(expr).__name__
        if kind.startswith("Boolean") or isinstance(expr, bool):
            return None
        if kind == "Not":
            return self.check(expr.args[0], not truth, where)
        joint = "or" if kind == "Or" else "and"
        parts = expr.args if kind in ("And", "Or") else (expr,)
        try:
            triples = []
            for part in parts:
                relation = _RELATIONS.get(type(part).__name__)
                if relation is None:
                    return None
                left, right = map(self.expression, part.args)
                triples.append((left, relation[0], right))
        except InexpressibleError:
            return None
        return Check(tuple(triples), joint, truth, where)


def distinct(checks: Iterable[Check | None]) -> tuple[Check, ...]:
    """The checks that say something, each once, in order."""
    found: dict[str, Check] = {}
    for check in checks:
        if check is not None and not check.proved:
            found.setdefault(str(check), check)
    return tuple(found.values())


def _fold(combine: Callable[[Dim, Dim], Dim], dims: list[Dim]) -> Dim:
    total = dims[0]
    for dim in dims[1:]:
        total = combine(total, dim)
    return total


def _mod(a: Dim, b: Dim) -> Dim:
    return a - floordiv(a, b) * b


def _identity(a: Dim, _: Dim) -> Dim:
    return a


_COMBINE: dict[str, Callable[[Dim, Dim], Dim]] = {
    "Add": lambda a, b: a + b,
    "Mul": lambda a, b: a * b,
    "FloorDiv": floordiv,
    "CleanDiv": floordiv,
    "Mod": _mod,
    "PythonMod": _mod,
    "Min": minimum,
    "Max": maximum,
    "Identity": _identity,
}


def named_symbols(placed: Iterable[tuple[Any, str]]) -> dict[str, str]:
    """`{torch symbol: user's name}` from `(size, name)` pairs; a name used for two is dropped."""
    given: dict[str, str] = {}
    for size, name in placed:
        expr = getattr(getattr(size, "node", None), "expr", None)
        found = list(getattr(expr, "free_symbols", ()))
        if len(found) == 1 and name.isidentifier() and name not in _RESERVED:
            given.setdefault(found[0].name, name)
    names = list(given.values())
    return {key: name for key, name in given.items() if names.count(name) == 1}


_RESERVED = frozenset({"min", "max", "True", "False", "None", "inf", "nan", "graph", "none"})
