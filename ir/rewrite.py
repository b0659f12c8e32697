"""The driver: one walk, operands first, that interns, settles and records each application.

Nothing is mutated. Ops that no rule touched are the same objects afterwards, so `diff` is a set
difference, and a value with several users needs no guard: the old one simply stays alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from .core import Builder, Op, Value, building, describe, rebuild
from .errors import IRError
from .graph import Graph
from .rule import No, Rule

MAX_REWRITES = 64
"""Applications in place at one op before a rule is said not to settle."""


@dataclass(frozen=True, slots=True)
class Event:
    """One try of a rule at an op that matched: the value it built, or the refusal."""

    rule: str
    at: Op
    result: Value | No

    @property
    def applied(self) -> bool:
        """Whether the rule fired."""
        return not isinstance(self.result, No)


@dataclass
class Journal:
    """What happened while a pass ran. `limit` stops rewriting after that many applications."""

    limit: int | None = None
    events: list[Event] = field(default_factory=list)
    applied: int = 0
    _refused: set[tuple[str, Op, str]] = field(default_factory=set)

    @property
    def spent(self) -> bool:
        """Whether the limit is reached."""
        return self.limit is not None and self.applied >= self.limit

    def record(self, rule: str, at: Op, result: Value | No) -> None:
        """Add an event; the same refusal at the same op is kept once."""
        if isinstance(result, No):
            key = (rule, at, result.reason)
            if key in self._refused:
                return
            self._refused.add(key)
        else:
            self.applied += 1
        self.events.append(Event(rule, at, result))


_journal: ContextVar[Journal | None] = ContextVar("subquad_journal", default=None)


@contextmanager
def journal(limit: int | None = None) -> Iterator[Journal]:
    """A block whose rewrites are recorded and, with `limit`, counted down."""
    current = Journal(limit)
    token = _journal.set(current)
    try:
        yield current
    finally:
        _journal.reset(token)


def current_journal() -> Journal:
    """The journal of the enclosing block, or a throw-away one."""
    return _journal.get() or Journal()


def rewrite(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """`graph` with `rules` applied until none fires; `graph` itself when nothing changed.

    Raises IRError when a rule changes a type, or does not settle.
    """
    index: dict[str, list[Rule]] = {}
    for rule in rules:
        for root in rule.roots:
            index.setdefault(root, []).append(rule)
    with building() as builder:
        return _Driver(index, builder, current_journal()).run(graph)


def replace(
    graph: Graph,
    make: Callable[[Op, tuple[Value | None, ...]], Sequence[Value] | None],
    via: str = "",
) -> Graph:
    """`graph` with ops replaced by what `make(op, new_inputs)` returns, operands first.

    `make` returns one value a result, or None to keep the op. For passes that are not rules; `via`
    is their name.
    """
    with building() as builder:
        for op in graph.ops():  # so that what `make` tries and drops never takes an op's place
            builder.intern(op)
        env: dict[Value, Value] = {}
        for op in graph.ops():
            inputs = tuple(None if v is None else env[v] for v in op.inputs)
            builder.source, builder.via = op.source, via
            made = make(op, inputs)
            new = builder.intern(rebuild(op, inputs)).results if made is None else made
            for old, value in zip(op.results, new, strict=True):
                if old.type != value.type:
                    raise IRError(f"{op.name} : {old.type} cannot become {value.type}")
                env[old] = value
        return _mapped(graph, env)


def _mapped(graph: Graph, env: dict[Value, Value]) -> Graph:
    return graph.with_(
        [env[v] for v in graph.outputs], {k: env[v] for k, v in graph.updates.items()}
    )


class _Driver:
    def __init__(self, index: dict[str, list[Rule]], builder: Builder, journal: Journal):
        self.index, self.builder, self.journal = index, builder, journal
        self.final: dict[Value, Value] = {}
        self.depth = 0

    def run(self, graph: Graph) -> Graph:
        for op in graph.ops():
            self.visit(op)
        return _mapped(graph, self.final)

    def visit(self, op: Op) -> None:
        """Settle the results of `op`, whose operands are settled."""
        final = self.final
        inputs = tuple([None if v is None else final[v] for v in op.inputs])
        new = op if inputs == op.inputs else self.again(op, inputs)
        new = self.builder.intern(new)
        active = new.defn.name in self.index
        for old, value in zip(op.results, new.results, strict=True):
            settled = final.get(value)
            if settled is None:
                settled = self.settle(value) if active else value
                final[value] = settled
            final[old] = settled

    def again(self, op: Op, inputs: tuple[Value | None, ...]) -> Op:
        self.builder.source, self.builder.via = op.source, op.via
        return rebuild(op, inputs)

    def settle(self, value: Value) -> Value:
        """Apply rules at `value` until none fires."""
        first = value
        for _ in range(MAX_REWRITES):
            fired = self.fire(value)
            if fired is None:
                return value
            name, value = fired
            self.depth += 1
            if self.depth > MAX_REWRITES:
                break
            value = self.fresh(value)
            self.depth -= 1
            if value.op.defn.name not in self.index:
                return value
        raise IRError(
            f"rule {name!r} does not settle at {first.op!r}: {MAX_REWRITES} rewrites in place"
        )

    def fire(self, value: Value) -> tuple[str, Value] | None:
        if self.journal.spent:
            return None
        op = value.op
        for rule in self.index.get(op.defn.name, ()):
            self.builder.source, self.builder.via = op.source, rule.name
            result = self.attempt(rule, value)
            if result is None or result is value:
                continue
            self.journal.record(rule.name, op, result)
            if isinstance(result, No):
                continue
            if result.type != value.type:
                raise IRError(
                    f"rule {rule.name!r} changes a type: {value.type} became {result.type}"
                )
            return rule.name, result
        return None

    def attempt(self, rule: Rule, value: Value) -> Value | No | None:
        try:
            return rule.apply(value)
        except Exception as error:
            op = value.op
            where = f"\n    at {op.source}" if op.source else ""
            reason = f"{type(error).__name__}: {error}"
            message = (
                f"rule {rule.name!r} raised at {describe(op.defn, op.inputs)}: {reason}{where}"
            )
            raise IRError(message) from error

    def fresh(self, value: Value) -> Value:
        """`value` with the ops below it that the rule just made settled too; itself not yet."""
        if value in self.final:
            return self.final[value]
        stack = [value.op]
        while stack:
            op = stack[-1]
            missing = [v.op for v in op.operands if v not in self.final]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if op is not value.op:
                self.visit(op)
        op = value.op
        inputs = tuple(None if v is None else self.final[v] for v in op.inputs)
        new = op if inputs == op.inputs else self.builder.intern(self.again(op, inputs))
        return new.results[value.index]


@dataclass(frozen=True, slots=True)
class Diff:
    """Ops present on one side only, by identity."""

    removed: tuple[Op, ...]
    added: tuple[Op, ...]


def diff(before: Graph, after: Graph) -> Diff:
    """What a pass removed and added. Exact, because an untouched op is the same object."""
    old, new = set(before.ops()), set(after.ops())
    return Diff(
        tuple(op for op in before.ops() if op not in new),
        tuple(op for op in after.ops() if op not in old),
    )


def isomorphic(a: Graph, b: Graph) -> bool:
    """Whether two graphs compute the same ops on the same inputs, whatever names and order.

    Inputs and outputs correspond by position, params by name; duplicates count as shared.
    """
    return mismatch(a, b) is None


def mismatch(a: Graph, b: Graph) -> str | None:
    """None when isomorphic, else a sentence naming the first difference."""
    if [v.type for v in a.inputs] != [v.type for v in b.inputs]:
        types = [", ".join(str(v.type) for v in graph.inputs) for graph in (a, b)]
        return f"inputs differ: ({types[0]}) and ({types[1]})"
    table: dict[object, int] = {}
    left, right = _numbered(a, table), _numbered(b, table)
    if len(a.outputs) != len(b.outputs):
        return f"{len(a.outputs)} and {len(b.outputs)} outputs"
    if set(a.updates) != set(b.updates):
        return f"updates differ: {sorted(a.updates)} and {sorted(b.updates)}"
    pairs = [
        (f"output {i}", x, y) for i, (x, y) in enumerate(zip(a.outputs, b.outputs, strict=True))
    ]
    pairs += [(f"update {k!r}", a.updates[k], b.updates[k]) for k in a.updates]
    for where, x, y in pairs:
        if left[x] != right[y]:
            return f"{where} differs at {_first_difference(x, y, left, right)}"
    return None


def _numbered(graph: Graph, table: dict[object, int]) -> dict[Value, int]:
    numbers: dict[Value, int] = {}
    draws = 0
    for i, value in enumerate(graph.inputs):
        numbers[value] = table.setdefault(("input", i, value.type), len(table))
    for op in graph.ops():
        if op.name == "input":
            continue
        inputs = tuple([None if v is None else numbers[v] for v in op.inputs])
        if op.defn.commutative:
            inputs = tuple(sorted(inputs, key=str))
        name, _, attrs = op.key
        if op.defn.random:  # two draws are two values, however alike
            name, draws = (name, draws), draws + 1
        for value in op.results:
            key = (name, inputs, attrs, value.index)
            numbers[value] = table.setdefault(key, len(table))
    return numbers


def _first_difference(x: Value, y: Value, left: dict[Value, int], right: dict[Value, int]) -> str:
    while x.op.name == y.op.name and len(x.op.inputs) == len(y.op.inputs):
        for u, v in zip(x.op.inputs, y.op.inputs, strict=True):
            if u is None or v is None:
                if u is not v:
                    return f"{x.op!r} against {y.op!r}"
            elif left[u] != right[v]:
                x, y = u, v
                break
        else:
            break
    attrs = [f"{k}={x.op.attrs[k]} / {y.op.attrs[k]}" for k in x.op.attrs
             if k in y.op.attrs and x.op.attrs[k] != y.op.attrs[k]]  # fmt: skip
    return f"{x.op!r} against {y.op!r}{' with ' + ', '.join(attrs) if attrs else ''}"
