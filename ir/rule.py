"""Rewrite rules: what it looks like before, a guard, what it becomes.

    @rule(lambda x, *, a, b: permute(permute(x, dims=a), dims=b))
    def permute_of_permute(x, *, a, b):
        dims = tuple(a[i] for i in b)
        return x if dims == tuple(range(x.rank)) else permute(x, dims=dims)

Positional parameters are tensors, keyword parameters attributes (or constants used as operands).
`before` is traced once with holes; `after` runs at each match on real values, so a guard is an `if`
that returns `No(reason)` (or None, silently), and a computed attribute is an expression.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .attributes import REQUIRED, attr_key
from .core import Expression, Op, OpDef, Value
from .errors import IRError


class No:
    """A refusal: falsy, with the reason and the value that caused it; the log keeps it."""

    __slots__ = ("at", "reason")

    def __init__(self, reason: str, at: Value | None = None):
        self.reason, self.at = reason, at

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"No({self.reason!r})"


class Pattern(Expression):
    """A node of a traced `before`: an op applied to patterns, numbers and keyword holes."""

    __slots__ = ("attrs", "defn", "inputs")

    def __init__(self, defn: OpDef, inputs: tuple[Any, ...], attrs: Mapping[str, Any]):
        self.defn, self.inputs, self.attrs = defn, inputs, attrs

    def node(self, defn: OpDef, operands: Sequence[Any], attrs: Mapping[str, Any]) -> Pattern:
        """`defn(*operands, **attrs)` inside a pattern."""
        return pattern_node(defn, operands, attrs)

    def __getattr__(self, name: str) -> Any:
        raise IRError(f"a rule's `before` cannot read .{name}: types are known only at the match")


class Hole(Expression):
    """A tensor parameter of a rule; every use must be the same value."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    node = Pattern.node
    __getattr__ = Pattern.__getattr__


class AttrHole(Expression):
    """A keyword parameter of a rule: an attribute, an item of one, or a constant operand."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    node = Pattern.node


def pattern_node(defn: OpDef, operands: Sequence[Any], attrs: Mapping[str, Any]) -> Pattern:
    """A pattern node with the defaults of unmentioned attributes filled in."""
    unknown = set(attrs) - set(defn.attr_kinds)
    if unknown:
        raise IRError(f"{defn.name} has no attribute {sorted(unknown)[0]!r}")
    full = {}
    for attr in defn.attrs:
        full[attr.name] = attrs.get(attr.name, attr.default)
        if full[attr.name] is REQUIRED:
            raise IRError(f"pattern of {defn.name} must give attribute {attr.name!r}")
    inputs = tuple(operands)
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    return Pattern(defn, inputs, full)


@dataclass(frozen=True, eq=False)
class Rule:
    """A named rewrite. `exact` rules change no value in exact arithmetic."""

    name: str
    befores: tuple[Callable[..., Any], ...]
    after: Callable[..., Any]
    exact: bool
    doc: str
    patterns: tuple[Pattern, ...] = ()

    @property
    def roots(self) -> tuple[str, ...]:
        """Names of the ops the rule may fire at."""
        return tuple(dict.fromkeys(p.defn.name for p in self.patterns))

    def match(self, value: Value) -> dict[str, Any] | None:
        """Bindings of the first spelling that matches at `value`, or None."""
        for pattern in self.patterns:
            if pattern.defn is value.op.defn:
                found = match(pattern, value)
                if found is not None:
                    return found
        return None

    def apply(self, value: Value) -> Value | No | None:
        """The replacement of `value`, a refusal, or None where the rule says nothing.

        Every spelling that matches is tried until one is not refused. What cannot be built is a
        refusal too: the type rules are guards that nobody has to write.
        """
        refusal: No | None = None
        for pattern in self.patterns:
            if pattern.defn is not value.op.defn:
                continue
            bound = match(pattern, value)
            if bound is None:
                continue
            try:
                result = self.after(**{k: bound[k] for k in self._wants})
            except IRError as error:
                result = No(str(error), value)
            if isinstance(result, Value):
                return result
            refusal = result if isinstance(result, No) else refusal
        return refusal

    @functools.cached_property
    def _wants(self) -> tuple[str, ...]:
        code = self.after.__code__
        return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def rule(*befores: Callable[..., Any], exact: bool = True) -> Callable[[Callable[..., Any]], Rule]:
    """Make a rule of the decorated function (`after`) and one or more spellings of `before`.

    Raises IRError when a spelling is not one op tree, or binds other names than `after` takes.
    """

    def make(after: Callable[..., Any]) -> Rule:
        name = after.__name__
        patterns = tuple(_trace(name, before) for before in befores)
        made = Rule(name, befores, after, exact, inspect.getdoc(after) or "", patterns)
        for before, pattern in zip(befores, patterns, strict=True):
            missing = set(made._wants) - _names(pattern)
            if missing:
                line = before.__code__.co_firstlineno
                raise IRError(
                    f"rule {name!r}: the spelling at line {line} never binds {sorted(missing)}"
                )
        return made

    return make


def _trace(name: str, before: Callable[..., Any]) -> Pattern:
    holes: list[Hole] = []
    attrs: dict[str, AttrHole] = {}
    for parameter in inspect.signature(before).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            attrs[parameter.name] = AttrHole(parameter.name)
        else:
            holes.append(Hole(parameter.name))
    pattern = before(*holes, **attrs)
    if not isinstance(pattern, Pattern):
        raise IRError(f"rule {name!r}: `before` must be an op applied to its parameters")
    return pattern


def _names(pattern: Any) -> set[str]:
    if isinstance(pattern, (Hole, AttrHole)):
        return {pattern.name}
    if isinstance(pattern, tuple):
        return set().union(*map(_names, pattern)) if pattern else set()
    if isinstance(pattern, Pattern):
        return _names(pattern.inputs) | _names(tuple(pattern.attrs.values()))
    return set()


def match(pattern: Pattern, value: Value) -> dict[str, Any] | None:
    """Bindings of the pattern's holes at `value`, trying both orders of commutative ops."""
    return _solve(((pattern, value), None), {})


def _solve(goals: Any, bound: dict[str, Any]) -> dict[str, Any] | None:
    while goals is not None:
        (pattern, value), goals = goals
        kind = type(pattern)
        if kind is Hole:
            if value is None or bound.setdefault(pattern.name, value) is not value:
                return None
        elif kind is AttrHole:
            number = None if value is None else value.number
            if number is None or not _bind(pattern.name, number, bound):
                return None
        elif kind is Pattern:
            if value is None or pattern.defn is not value.op.defn or value.index:
                return None  # a pattern stands for the first result
            op = value.op
            if len(pattern.inputs) != len(op.inputs) or not _match_attrs(pattern, op, bound):
                return None
            if pattern.defn.commutative:
                (p, q), (x, y) = pattern.inputs, op.inputs
                straight = _solve(((p, x), ((q, y), goals)), dict(bound))
                return _solve(((p, y), ((q, x), goals)), bound) if straight is None else straight
            for pair in zip(pattern.inputs, op.inputs, strict=True):
                goals = (pair, goals)
        elif pattern is None:
            if value is not None:
                return None
        elif value is None or value.number is None or value.number != pattern:
            return None
    return bound


def _bind(name: str, value: Any, bound: dict[str, Any]) -> bool:
    if name in bound:
        return attr_key({"": bound[name]}) == attr_key({"": value})
    bound[name] = value
    return True


def _match_attrs(pattern: Pattern, op: Op, bound: dict[str, Any]) -> bool:
    for name, wanted in pattern.attrs.items():
        actual = op.attrs[name]
        if isinstance(wanted, AttrHole):
            if not _bind(wanted.name, actual, bound):
                return False
        elif isinstance(wanted, tuple) and any(isinstance(item, AttrHole) for item in wanted):
            if not isinstance(actual, tuple) or len(actual) != len(wanted):
                return False
            for item, part in zip(wanted, actual, strict=True):
                if isinstance(item, AttrHole):
                    if not _bind(item.name, part, bound):
                        return False
                elif item != part:
                    return False
        else:
            try:
                wanted = op.defn.attr_kinds[name].normalise(wanted, op.inputs)
            except IRError:
                return False
            if attr_key({"": wanted}) != attr_key({"": actual}):
                return False
    return True
