"""Running a graph: the one traversal, and float64 numpy evaluation on top of it, the oracle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .attributes import attr_key
from .core import OPS, Op, OpDef, Value, building, describe
from .dims import Dim, Poly, symbols
from .dims import evaluate as evaluate_dim
from .errors import IRError
from .graph import Graph
from .types import TensorType


def interpret(
    graph: Graph,
    inputs: Sequence[Any],
    call: Callable[[Op, list[Any], dict[str, int]], Sequence[Any]],
    shape_of: Callable[[Any], Sequence[int]] = np.shape,
    dims: Mapping[str, int] | None = None,
) -> tuple[list[Any], dict[str, Any]]:
    """Run `call(op, operands, dims)` over every op in order; returns outputs and updates.

    Works for any data: `call` returns one item a result. Symbols of the dims are bound from the
    shapes of the inputs, data-dependent ones from the shapes of results; `dims` are known before (a
    composite's body runs inside a graph that knows them). Data that no later op needs is dropped.
    """
    if len(inputs) != len(graph.inputs):
        raise IRError(f"graph {graph.name!r} takes {len(graph.inputs)} inputs, given {len(inputs)}")
    env = dict(dims or {})
    bind({v: shape_of(x) for v, x in zip(graph.inputs, inputs, strict=True)}, env)
    data: dict[Value, Any] = dict(zip(graph.inputs, inputs, strict=True))
    for op, dead in graph.schedule:
        if op.name != "input":
            results = call(op, [None if v is None else data[v] for v in op.inputs], env)
            for value, result in zip(op.results, results, strict=True):
                data[value] = result
                bind({value: shape_of(result)}, env)
        for value in dead:
            data.pop(value, None)
    return [data[v] for v in graph.outputs], {k: data[v] for k, v in graph.updates.items()}


def bind(shapes: Mapping[Value, Sequence[int]], env: dict[str, int] | None = None) -> dict[str, int]:
    """Values of the dim symbols, from actual shapes. Raises IRError naming the dim that differs."""
    env = {} if env is None else env
    late: list[tuple[Value, int, Dim, int]] = []
    for value, shape in shapes.items():
        expected = value.shape
        if tuple(shape) == expected:
            continue
        if len(shape) != len(expected):
            raise IRError(f"{_who(value)} is {value.type}, given shape {tuple(shape)}")
        for axis, (dim, size) in enumerate(zip(expected, shape, strict=True)):
            names = list(symbols(dim))
            if len(names) == 1 and names[0] not in env:
                found = solve(dim, names[0], size)
                if found is not None:
                    env[names[0]] = found
            late.append((value, axis, dim, size))
    for value, axis, dim, size in late:
        if not set(symbols(dim)) <= env.keys():  # no whole number makes this size
            raise IRError(f"{_who(value)} is {value.type}: axis {axis} is {dim}, given {size}")
        wanted = evaluate_dim(dim, env)
        if wanted != size:
            known = f" = {wanted}" if isinstance(dim, Poly) else ""
            raise IRError(f"{_who(value)} is {value.type}: axis {axis} is {dim}{known}, given {size}")
    return env


def solve(dim: Dim, name: str, size: int) -> int | None:
    """The one value >= 0 that gives `slope * name + base` this size; None for any other form."""
    terms = dict(dim.terms) if isinstance(dim, Poly) else {}
    base, slope = terms.pop((), 0), terms.pop(((name, 1),), 0)
    if terms or not slope or (size - base) % slope or (size - base) // slope < 0:
        return None
    return (size - base) // slope


def _who(value: Value) -> str:
    return f"input {value.op.attrs['name']!r}" if value.op.name == "input" else f"a result of {value.op.name}"


def evaluate(
    graph: Graph,
    inputs: Sequence[Any],
    params: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Outputs and updates by the numpy meaning of every op; floats are computed in float64.

    inputs: arrays in the order of `graph.inputs`. params: arrays by name, for graphs that read any;
    one that is missing and has an `init` starts from that.
    Raises IRError for an op without numpy meaning (opaque, random).
    """
    weights = params or {}

    def call(op: Op, operands: list[Any], env: dict[str, int]) -> Sequence[Any]:
        if op.name == "param":
            name, init = op.attrs["name"], op.attrs["init"]
            if name not in weights and init is not None:
                return evaluate(init, (), weights)[0]
            if name not in weights:
                raise IRError(f"graph {graph.name!r} reads param {name!r}, which was not given")
            return (as_array(weights[name], op.types[0]),)
        with np.errstate(all="ignore"):
            return meaning(op, operands, env)

    arrays = [as_array(x, v.type) for x, v in zip(inputs, graph.inputs, strict=False)]
    data = arrays if len(inputs) == len(graph.inputs) else inputs
    return interpret(graph, data, call, dims=dims)


def as_array(data: Any, type: TensorType) -> np.ndarray:
    """`data` as an array of the interpretation's dtype for `type` (floats widen to float64)."""
    return np.asarray(data).astype(type.dtype.numpy, copy=False)


def meaning(op: Op, operands: list[Any], env: Mapping[str, int]) -> list[np.ndarray]:
    """The numpy results of one op on arrays: its own function, or its body evaluated."""
    defn = op.defn
    attrs = {k: concrete(v, env) for k, v in op.attrs.items()}
    if defn.numpy is not None:
        try:
            results = defn.numpy(*operands, **attrs)
        except (
            IndexError,
            ValueError,
            ZeroDivisionError,
        ) as error:  # an index out of range: only the data tells
            raise IRError(f"{describe(defn, op.inputs)}: {error}") from error
    elif defn.body is not None:
        results = evaluate_body(op, operands, env)
    else:
        raise IRError(f"{op.name} has no numpy meaning; run it through a backend")
    if len(op.types) == 1:
        results = (results,)
    return [as_array(r, t) for r, t in zip(results, op.types, strict=True)]


def evaluate_body(op: Op, operands: Sequence[Any], dims: Mapping[str, int] | None = None) -> Any:
    """The results of a composite op by evaluating its body (never its own numpy function)."""
    given = [x for x in operands if x is not None]
    outputs, _ = evaluate(body_graph(op), given, dims=dims)
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def body_graph(op: Op) -> Graph:
    """The body of a composite op on its operand types, as a graph whose inputs are the operands."""
    types = tuple(None if v is None else v.type for v in op.inputs)
    return _body(op.defn, types, tuple(op.attrs.items()), attr_key(op.attrs))


@functools.lru_cache(maxsize=1024)
def _body(
    defn: OpDef,
    types: tuple[TensorType | None, ...],
    attrs: tuple[tuple[str, Any], ...],
    _key: tuple[Any, ...],  # 1, 1.0 and True are one dict key; this tells them apart
) -> Graph:
    if defn.body is None:
        raise IRError(f"{defn.name} is a primitive: it has no body")
    names = [p.name for p in defn.params]
    with building():
        values = [
            None
            if t is None
            else OPS["input"](name=names[i] if i < len(names) else f"{names[-1]}{i}", type=t)
            for i, t in enumerate(types)
        ]
        results = defn.body(*values, **dict(attrs))
    outputs = (results,) if isinstance(results, Value) else tuple(results)
    return Graph(defn.name, [v for v in values if v is not None], outputs)


def concrete(value: Any, env: Mapping[str, int]) -> Any:
    """An attribute value with its dims evaluated in `env`."""
    if isinstance(value, Poly):
        return evaluate_dim(value, env)
    if isinstance(value, tuple):
        return tuple(concrete(item, env) for item in value)
    return value
