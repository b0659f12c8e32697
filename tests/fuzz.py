"""Random graphs from the op table, and random instances of rules, without a word per op.

`Maker` chooses an op, chooses operands and attributes of the kinds its declaration names, and asks
the type rule; an IRError means choose again. A planted step does the same with the `before` of a
rule. `specimen` is one graph of the fuzzer; `python tests/fuzz.py SEED` prints it.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
import random
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import subquad.ir as ir
from subquad.ir import DTYPES, OPS, Graph, IRError, OpDef, TensorType, Value, building, symbol
from subquad.ir.attributes import REQUIRED, Attr
from subquad.ir.dims import Dim, Poly, substitute
from subquad.ir.rule import AttrHole, Hole, Pattern, Rule
from subquad.ir.types import product, scalar_dtype

FLOATS, INTS = ("f64", "f64", "f64", "f32", "bf16"), ("i64", "i32")
NUMBERS = (0, 1, -1, 2, 3, 0.0, 1.0, -1.0, 2.0, 0.5, -0.25, 1e-5, -0.0, True)
FAMOUS = (math.sqrt(0.5), math.sqrt(2), math.sqrt(2 / math.pi), 0.044715, 1.702, 1 / 6, 3.0, 6.0)
SPECIAL_NUMBERS = (float("inf"), float("-inf"), float("nan"), 1e30, -1e30, 1e-30)
SPECIALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e30, -1e30, np.inf, -np.inf, np.nan)
NOT_CHOSEN = frozenset({"input", "param", "const", "opaque"})
TRIES = 12


class Maker:
    """Makes values: from ops at random, and from the patterns of rules.

    reuse: how often an operand is a value made before rather than a new input. sources: how often
    it is a constant or a param. symbols: names that dims may take beside small integers. special:
    whether numbers may be infinite, NaN or huge. famous: only numbers that formulas are known by.
    """

    def __init__(
        self,
        seed: int,
        *,
        reuse: float = 0.8,
        sources: float = 0.1,
        symbols: Sequence[str] = (),
        special: bool = False,
        famous: bool = False,
    ):
        self.rng, self.famous = random.Random(seed), famous
        self.reuse, self.sources, self.special = reuse, sources, special
        self.most_inputs, self.params = 6, 0
        self.inputs: list[Value] = []
        self.values: list[Value] = []
        self.dims: list[Dim] = [1, 2, 2, 3, 3, 4, *map(symbol, symbols), *map(symbol, symbols)]

    def graph(self, outputs: Sequence[Value], name: str = "g") -> Graph:
        """The graph of these outputs over the inputs made so far."""
        return Graph(name, self.inputs, outputs)

    def input(self, type: TensorType) -> Value:
        """A new input of the graph."""
        value = OPS["input"](name=f"x{len(self.inputs)}", type=type)
        self.inputs.append(value)
        self.values.append(value)
        return value

    def shape(self, near: Sequence[TensorType] = ()) -> tuple[Dim, ...]:
        """Dims at random; with types `near`, mostly dims that go together with one of those."""
        rng, dim = self.rng, self.rng.choice(self.dims)
        if not near or rng.random() < 0.1:
            return tuple(rng.choice(self.dims) for _ in range(rng.choice((0, 1, 2, 2, 3, 3, 4, 4))))
        shape = rng.choice(near).shape
        if not shape or rng.random() < 0.4:
            return shape
        axis = rng.randrange(len(shape))
        swapped = (*shape[:-2], shape[-1], shape[-2]) if len(shape) > 1 else shape
        return rng.choice((
            swapped, swapped, shape[-1:], (), shape[1:], (dim, *shape), (*shape[:-1], dim),
            (*swapped[:-1], dim), (dim, shape[-1]), (shape[-1], dim),
            (*shape[:axis], 1, *shape[axis + 1 :]),
        ))  # fmt: skip

    def type(self, kinds: str, near: Sequence[TensorType] = ()) -> TensorType:
        """A type whose dtype is of one of these kinds."""
        rng = self.rng
        same = [t.dtype for t in near if t.dtype.kind in kinds]
        if same and rng.random() < 0.8:
            dtype = rng.choice(same)
        else:
            usual = [*FLOATS * 3, *INTS, "bool"]
            names = [name for name in usual if DTYPES[name].kind in kinds]
            dtype = DTYPES[rng.choice(names)] if names else DTYPES["c64"]
        return TensorType(dtype, self.shape(near))

    def operand(self, kinds: str, near: Sequence[TensorType]) -> Value:
        """A value for an operand that takes these dtype kinds, beside operands of types `near`."""
        rng = self.rng
        if rng.random() < self.sources:
            return self.source(kinds, near)
        fitting = [v for v in self.values if v.dtype.kind in kinds]
        if fitting and rng.random() < self.reuse * 0.4:
            return rng.choice(fitting[-8:])
        type = self.type(kinds, near)
        alike = [v for v in fitting if v.type == type]
        if alike and rng.random() < self.reuse:
            return rng.choice(alike)
        if fitting and len(self.inputs) >= self.most_inputs:
            return rng.choice(fitting)
        return self.input(type)

    def source(self, kinds: str, near: Sequence[TensorType]) -> Value:
        """A constant or a param."""
        type = self.type(kinds, near)
        if self.rng.random() < 0.7:
            number = self.number()
            return OPS["const"](value=number, dtype=scalar_dtype(number, [type.dtype]))
        self.params += 1
        return OPS["param"](name=f"w{self.params}", type=type)

    def number(self) -> bool | int | float:
        """A constant operand."""
        if self.famous:
            return self.rng.choice(FAMOUS)
        if self.special and self.rng.random() < 0.3:
            return self.rng.choice(SPECIAL_NUMBERS)
        return self.rng.choice(NUMBERS)

    def attribute(self, attr: Attr, operands: Sequence[Value | None]) -> Any:
        """A value of the attribute's kind that suits the operands."""
        rng = self.rng
        if attr.default is not REQUIRED and rng.random() < 0.3:
            return attr.default
        first = operands[0] if operands else None
        rank = first.rank if first is not None else 0
        shape = first.shape if first is not None else ()
        match attr.kind:
            case "axis":
                return rng.randrange(-rank, rank) if rank else 0
            case "axes":
                return tuple(rng.sample(range(rank), rng.randint(0, rank)))
            case "order":
                return tuple(rng.sample(range(rank), rank))
            case "dim":
                return rng.choice((0, 1, 2, 3, *shape))
            case "shape":
                return self.reshaped(shape)
            case "int":
                return rng.choice((0, 1, 1, 2, 3))
            case "ints":
                return tuple(rng.choice((0, 1, 2)) for _ in range(rng.choice((rank, 1, 2))))
            case "float":
                return rng.choice((1.0, 0.5, 2.0, 1e-5))
            case "bool":
                return rng.random() < 0.5
            case "number":
                return self.number()
            case "dtype":
                if self.values and rng.random() < 0.5:
                    return rng.choice((DTYPES["f32"], rng.choice(self.values).dtype))
                return DTYPES[rng.choice((*FLOATS, *INTS, "bool", "f16"))]
            case "str":
                return rng.choice(("none", "tanh", "constant", "reflect", "mean", "sum", "same"))
        raise IRError(f"no way to choose a {attr.kind}")

    def reshaped(self, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """A shape that reshaping or expanding to may accept."""
        rng = self.rng
        axis = rng.randrange(len(shape) + 1)
        rest = shape[axis + 2 :]
        choices: list[tuple[Dim, ...]] = [
            shape, (-1,), (*shape[:axis], 1, *shape[axis:]), (rng.choice(self.dims), *shape),
            (product(shape),), tuple(rng.choice(self.dims) if d == 1 else d for d in shape),
            tuple(d for d in shape if d != 1),
        ]  # fmt: skip
        if axis + 1 < len(shape):
            choices += [(*shape[:axis], shape[axis] * shape[axis + 1], *rest)] * 3
        if axis < len(shape) and shape[axis] == 4:
            choices += [(*shape[:axis], 2, 2, *shape[axis + 1 :])] * 3
        return rng.choice(choices)

    def op(self, defn: OpDef) -> tuple[Value, ...]:
        """The results of the op on operands and attributes at random. IRError when unlucky."""
        rng = self.rng
        operands: list[Value | None] = []
        for param in defn.params:
            if param.optional and rng.random() < 0.5:
                operands.append(None)
                continue
            for _ in range(rng.choice((1, 2, 2, 3)) if param.variadic else 1):
                near = [v.type for v in operands if v is not None]
                operands.append(self.operand(param.kinds, near))
        if len(operands) == 2 and not defn.params[-1].variadic and rng.random() < 0.15:
            operands[rng.randrange(2)] = self.number()  # type: ignore[call-overload]
        attrs = {a.name: self.attribute(a, self._lifted(operands)) for a in defn.attrs}
        results = defn(*operands, **attrs)
        return results if isinstance(results, tuple) else (results,)

    @staticmethod
    def _lifted(operands: Sequence[Any]) -> list[Value | None]:
        return [v if isinstance(v, Value) or v is None else None for v in operands]

    def step(self) -> None:
        """One more op; nothing when every try was refused."""
        for defn in self.rng.choices(*choices(), k=TRIES):
            made = len(self.inputs)
            try:
                self.values += self.op(defn)
                return
            except IRError:
                self._forget(made)

    def plant(self, rule: Rule, tries: int = TRIES) -> Value | None:
        """A value that a spelling of the rule should match; None when every try was refused."""
        for _ in range(tries):
            made = len(self.inputs)
            try:
                value = self._instance(self.rng.choice(rule.patterns), {}, (), "")
            except IRError:
                self._forget(made)
                continue
            self.values.append(value)
            return value
        return None

    def _forget(self, made: int) -> None:
        gone = set(self.inputs[made:])
        self.inputs = self.inputs[:made]
        self.values = [v for v in self.values if v not in gone]

    def _instance(self, pattern: Any, bound: dict[str, Any], near: Sequence[TensorType], kinds: str) -> Any:
        """What a pattern stands for, on new or existing values; fills `bound`."""
        if isinstance(pattern, Hole):
            if pattern.name not in bound:
                bound[pattern.name] = self.operand(kinds, near)
            return bound[pattern.name]
        if isinstance(pattern, AttrHole):
            return bound.setdefault(pattern.name, self.number())
        if not isinstance(pattern, Pattern):
            return pattern  # a number, or None
        params = pattern.defn.params
        nested = [isinstance(p, Pattern) for p in pattern.inputs]
        operands: list[Any] = [None] * len(nested)
        for inner in (True, False):  # inner ops first: what stands beside them can then fit
            for i, part in enumerate(pattern.inputs):
                if nested[i] is inner:
                    beside = [v.type for v in operands if isinstance(v, Value)]
                    takes = params[min(i, len(params) - 1)].kinds
                    operands[i] = self._instance(part, bound, beside or near, takes)
        return self._apply(pattern, operands, bound)

    def _apply(self, pattern: Pattern, operands: list[Any], bound: dict[str, Any]) -> Value:
        last: IRError | None = None
        for _ in range(TRIES):
            trial = dict(bound)
            attrs = {
                attr.name: self._wanted(pattern.attrs[attr.name], attr, operands, trial)
                for attr in pattern.defn.attrs
            }
            try:
                result = pattern.defn(*operands, **attrs)
            except IRError as error:
                last = error
                continue
            value = result[0] if isinstance(result, tuple) else result
            for name, wanted in pattern.attrs.items():
                if isinstance(wanted, AttrHole):  # in the form that the op stores
                    trial[wanted.name] = value.op.attrs[name]
            bound.update(trial)
            return value
        raise last or IRError("no instance")

    def _wanted(self, wanted: Any, attr: Attr, operands: list[Any], bound: dict[str, Any]) -> Any:
        if isinstance(wanted, AttrHole):
            if wanted.name not in bound:
                bound[wanted.name] = self.attribute(attr, self._lifted(operands))
            return bound[wanted.name]
        if isinstance(wanted, tuple):
            rank = operands[0].rank if operands and isinstance(operands[0], Value) else 1
            return tuple(
                bound.setdefault(item.name, self.rng.randrange(max(rank, 1)))
                if isinstance(item, AttrHole)
                else item
                for item in wanted
            )
        return wanted


@functools.cache
def choices() -> tuple[list[OpDef], list[int]]:
    """The ops to choose from, and how often: the more operands, the more refusals."""
    defns = [d for d in OPS.values() if d.name not in NOT_CHOSEN and not d.random]
    return defns, [max(1, len(d.params)) ** 2 for d in defns]


def specimen(seed: int, rules: Sequence[Rule] = (), *, symbols: Sequence[str] = ()) -> Graph:
    """The fuzzer's graph of this seed: 4 to 20 steps, three in ten of them a planted `before`."""
    with building():
        maker = Maker(seed, symbols=symbols)
        for name in symbols:  # a symbol means something only where an input has it
            maker.input(TensorType(DTYPES["f64"], (symbol(name),)))
        for _ in range(maker.rng.randint(1, 3)):
            maker.input(maker.type("f"))
        for _ in range(maker.rng.randint(4, 20)):
            if rules and maker.rng.random() < 0.3:
                maker.famous = maker.rng.random() < 0.2
                maker.sources = maker.rng.choice((0.1, 0.1, 0.5))
                maker.plant(maker.rng.choice(rules))
                maker.famous, maker.sources = False, 0.1
            else:
                maker.step()
        used = {v for value in maker.values for v in value.op.operands}
        ends = [v for v in maker.values if v not in used and v.op.name != "input"]
        ends += maker.rng.sample(maker.values, 1)
        return maker.graph(tuple(dict.fromkeys(ends)), f"seed{seed}")


def sizes(dims: Sequence[Dim], env: Mapping[str, int]) -> tuple[int, ...]:
    """The dims as integers; a symbol without a value in `env` is 2."""
    full = {name: env.get(name, 2) for name in ir.dims.symbols(dims)}
    return tuple(ir.dims.evaluate(d, full) for d in dims)


def data(
    types: Sequence[TensorType], seed: int, env: Mapping[str, int] = {}, *, special: bool = False
) -> list[np.ndarray]:
    """Arrays of these types: ordinary numbers, or (`special`) zero, huge, infinite, NaN."""
    rng = np.random.default_rng(seed)
    arrays = []
    for type in types:
        shape = sizes(type.shape, env)
        if type.dtype.kind == "b":
            array = rng.integers(0, 2, shape).astype(bool)
        elif type.dtype.kind in "ui":
            array = rng.integers(0, 3, shape)
        elif special:
            array = rng.choice(np.array(SPECIALS), size=shape)
        else:
            array = rng.standard_normal(shape)
        arrays.append(np.asarray(array).astype(type.dtype.numpy))
    return arrays


def run(graph: Graph, seed: int, env: Mapping[str, int] = {}, *, special: bool = False) -> list[np.ndarray]:
    """Outputs and updates on the data of this seed. Raises IRError where no result is defined."""
    inputs = data([v.type for v in graph.inputs], seed, env, special=special)
    outputs, updates = ir.evaluate(graph, inputs, weights(graph, seed, env, special=special))
    return [*outputs, *updates.values()]


def weights(
    graph: Graph, seed: int, env: Mapping[str, int] = {}, *, special: bool = False
) -> dict[str, np.ndarray]:
    """Arrays for the params of a graph: by name, so that a param keeps its data in any order."""
    return {
        name: data([type], seed + zlib.crc32(name.encode()), env, special=special)[0]
        for name, type in graph.params.items()
    }


def at_sizes(graph: Graph, env: Mapping[str, int]) -> Graph:
    """The graph with symbols replaced by sizes. IRError where the sizes do not go through."""

    def swap(item: Any) -> Any:
        if isinstance(item, Poly):
            return substitute(item, env)
        if isinstance(item, TensorType):
            return item.with_(shape=tuple(map(swap, item.shape)))
        return tuple(map(swap, item)) if isinstance(item, tuple) else item

    with building():
        new: dict[Value, Value] = {}
        for op in graph.ops():
            inputs = [None if v is None else new[v] for v in op.inputs]
            built = ir.build(op.defn, inputs, {k: swap(v) for k, v in op.attrs.items()})
            new.update(zip(op.results, built.results, strict=True))
    updates = {k: new[v] for k, v in graph.updates.items()}
    return Graph(graph.name, [new[v] for v in graph.inputs], [new[v] for v in graph.outputs], updates)


def difference(a: Any, b: Any, tolerance: float = 1e-10, *, pattern_only: bool = False) -> str | None:
    """None when two arrays agree: shape, NaN places, signed infinities and zeros, finite values.

    Finite values may differ by `tolerance` of the largest one.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype}{a.shape} became {b.dtype}{b.shape}"
    if a.dtype.kind not in "fc":
        return None if np.array_equal(a, b) else "integers or bools differ"
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return "NaN at other places"
    huge = np.isinf(a) | np.isinf(b)
    if not np.array_equal(a[huge], b[huge], equal_nan=True):
        return "infinities differ"
    zero = (a == 0) & (b == 0)
    if a.dtype.kind == "f" and not np.array_equal(np.signbit(a[zero]), np.signbit(b[zero])):
        return "the sign of a zero differs"
    fine = np.isfinite(a)
    if pattern_only or not fine.any():
        return None
    with np.errstate(over="ignore"):
        error = np.max(np.abs(a[fine] - b[fine])) / max(1.0, float(np.max(np.abs(a[fine]))))
    return None if error <= tolerance else f"off by {error:.1e}"


def library_rules() -> dict[str, Rule]:
    """Every rule reachable from the modules of `subquad.passes` and `subquad.ir`, by name."""
    rules: dict[str, Rule] = {}
    for module in _modules("subquad.ir", "subquad.passes"):
        for item in vars(module).values():
            for found in _flat(item):
                if rules.setdefault(found.name, found) is not found:
                    raise AssertionError(f"two rules are called {found.name!r}")
    return rules


def _modules(*roots: str) -> Iterator[Any]:
    for root in roots:
        package = importlib.import_module(root)
        yield package
        for info in pkgutil.walk_packages(package.__path__, root + "."):
            yield importlib.import_module(info.name)


def _flat(item: Any) -> Iterator[Rule]:
    if isinstance(item, Rule):
        yield item
    elif isinstance(item, (tuple, list, dict)):
        for part in item.values() if isinstance(item, dict) else item:
            if isinstance(part, (Rule, tuple, list)):
                yield from _flat(part)


if __name__ == "__main__":
    print(specimen(int(sys.argv[1]), list(library_rules().values())))
