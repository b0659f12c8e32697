"""From the IR to a `torch.fx` graph of aten calls."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from ..ir.attributes import REQUIRED, Slot, attr_key
from ..ir.core import Op, Value
from ..ir.dims import Dim, Poly, substitute, symbol, symbols
from ..ir.errors import BackendError, IRError
from ..ir.graph import Graph
from ..ir.interpret import body_graph
from ..ir.types import DType, TensorType, promote, scalar_dtype
from .base import TORCH_DTYPE

CUSTOM: dict[str, Callable[[Lowering, Op, list[Any]], Any]] = {}
"""Lowerings by op name for what no single schema says; they return a node, or None to decline."""


class Number:
    """A `const` or `size` that has not become a tensor: `value` is a number or a node."""

    __slots__ = ("node", "type", "value")

    def __init__(self, value: Any, type: TensorType):
        self.value, self.type = value, type
        self.node: fx.Node | None = None


class Lowering:
    """Builds one fx graph; `results` maps each lowered value to its node or Number."""

    def __init__(self, graph: Graph, modules: Mapping[str, nn.Module] = {}):
        self.graph, self.modules = graph, modules
        self.fx = fx.Graph()
        self.root = nn.Module()
        self.sizes: dict[str, Callable[[], Any]] = {}
        self.dims: dict[Poly, Any] = {}
        self._device: Any = None
        self.first: fx.Node | None = None

    def module(self) -> fx.GraphModule:
        """The whole graph: placeholders for inputs, then for params; outputs, then updates."""
        graph, results = self.graph, {}
        params = {op.attrs["name"]: op.results[0] for op in graph.ops() if op.name == "param"}
        for value in (*graph.inputs, *params.values()):
            name = re.sub(r"\W", "_", value.op.attrs["name"])
            node = self.fx.placeholder(f"p_{name}" if not name[:1].isalpha() else name)
            self.first = self.first or node
            results[value] = node
            self.learn(value, node)
        self.ops(graph, results)
        wanted = [*graph.outputs, *graph.updates.values()]
        self.fx.output(tuple(self.tensor(results[v]) for v in wanted))
        return fx.GraphModule(self.root, self.fx, class_name=re.sub(r"\W", "_", graph.name) or "Graph")

    def ops(self, graph: Graph, results: dict[Value, Any]) -> None:
        """Lower every op of `graph` whose results are not there yet."""
        for op in graph.ops():
            if op.results and op.results[0] in results:
                continue
            lowered = self.op(op, [None if v is None else results[v] for v in op.inputs])
            results.update(zip(op.results, lowered, strict=True))

    def op(self, op: Op, operands: list[Any]) -> Sequence[Any]:
        """The nodes of one op's results. Raises BackendError where torch has no way to say it."""
        if op.name == "const":
            return (Number(_typed(op.attrs["value"], op.types[0].dtype), op.types[0]),)
        if op.name == "size":
            return (Number(self.dim(op.attrs["value"]), op.types[0]),)
        if op.name == "opaque":
            return self.split(op, self.opaque(op, operands))
        custom = CUSTOM.get(op.name)
        node = custom(self, op, operands) if custom else None
        if node is None:
            node = self.by_schema(op, operands)
        if node is not None:
            return self.split(op, node)
        if op.defn.body is None:
            raise BackendError(f"{op!r} has no lowering to torch: no overload of {op.defn.aten} fits")
        body = body_graph(op)
        inner = dict(zip(body.inputs, [x for x in operands if x is not None], strict=True))
        self.ops(body, inner)
        return [inner[v] for v in body.outputs]

    def split(self, op: Op, node: Any) -> Sequence[Any]:
        """The nodes of the results of a call, with data-dependent dims bound from their shapes."""
        nodes = [node]
        if len(op.types) != 1 or (op.name == "opaque" and _returns_tuple(op.attrs["target"])):
            nodes = [self.call(operator.getitem, node, i) for i in range(len(op.types))]
        for value, result in zip(op.results, nodes, strict=True):
            for name in dict.fromkeys(symbols(value.shape)):
                if name not in self.sizes:
                    self.learn(value, result)
                    if name in self.sizes:
                        self.dim(symbol(name))  # now, while the tensor is alive
        return nodes

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call in the fx graph."""
        return self.fx.call_function(function, args, kwargs)

    # ---- dims, devices, numbers ----

    def learn(self, value: Value, node: fx.Node) -> None:
        """Note the symbols that `node`'s shape tells: a dim `a * s + b` with one unknown symbol s."""
        for axis, dim in enumerate(value.shape):
            names = set(symbols(dim))
            unknown = names - set(self.sizes)
            if len(unknown) != 1 or "(" in str(dim) or "//" in str(dim):
                continue
            (name,) = unknown
            zero = substitute(dim, {name: 0})
            slope = substitute(dim, {name: 1}) - zero
            if slope == 0 or substitute(dim, {name: 2}) - zero != slope * 2:
                continue
            if isinstance(zero, int) and isinstance(slope, int):
                self.sizes[name] = functools.partial(self._solve, node, axis, zero, slope)

    def _solve(self, node: fx.Node, axis: int, zero: int, slope: int) -> Any:
        size = self.call(torch.ops.aten.sym_size.int, node, axis)
        size = self.call(operator.sub, size, zero) if zero else size
        return self.call(operator.floordiv, size, slope) if slope != 1 else size

    def dim(self, dim: Dim) -> Any:
        """A dim as an int or as the node that computes it."""
        if isinstance(dim, int):
            return dim
        if dim not in self.dims:
            self.dims[dim] = self._polynomial(dim)
        return self.dims[dim]

    def _polynomial(self, dim: Poly) -> Any:
        total: Any = None
        for monomial, coefficient in dim.terms:
            term: Any = None
            for atom, power in monomial:
                for _ in range(power):
                    base = self._atom(atom)
                    term = base if term is None else self.call(operator.mul, term, base)
            if term is None:
                term = coefficient
            elif coefficient != 1:
                term = self.call(operator.mul, term, coefficient)
            total = term if total is None else self.call(operator.add, total, term)
        return total

    def _atom(self, atom: Any) -> Any:
        if isinstance(atom, str):
            if atom not in self.sizes:
                raise BackendError(f"no input's shape tells the size {atom!r}")
            name = symbol(atom)
            if name not in self.dims:
                self.dims[name] = self.sizes[atom]()
            return self.dims[name]
        functions = {"floordiv": operator.floordiv, "min": torch.sym_min, "max": torch.sym_max}
        return self.call(functions[atom.fn], *map(self.dim, atom.args))

    def device(self) -> Any:
        """The device new tensors are made on: that of the first input or param."""
        if self.first is None:
            return torch.device("cpu")
        if self._device is None:
            args = (self.first, "device")
            self._device = self.fx.create_node("call_function", getattr, args, name="device")
        return self._device

    def tensor(self, item: Any) -> Any:
        """A node; a Number becomes a 0-d tensor, once."""
        if not isinstance(item, Number):
            return item
        if item.node is None:
            dtype = TORCH_DTYPE[item.type.dtype]
            item.node = self.call(
                torch.ops.aten.scalar_tensor.default, item.value, dtype=dtype, device=self.device()
            )
        return item.node

    def attribute(self, value: Any) -> Any:
        """An attribute as torch takes it: dims computed, dtypes translated."""
        if isinstance(value, Poly):
            return self.dim(value)
        if isinstance(value, DType):
            return TORCH_DTYPE[value]
        if isinstance(value, tuple):
            return [self.attribute(item) for item in value]
        return value

    # ---- one call by its schema ----

    def by_schema(self, op: Op, operands: list[Any]) -> fx.Node | None:
        """The call of the first overload that says exactly this op; None where none does."""
        for name in op.defn.aten:
            overload = find_overload(name)
            fitted = overload and self.fit(op, overload, operands)
            if fitted:
                return self.call(overload, *fitted[0], **fitted[1])
        return None

    def fit(self, op: Op, overload: Any, operands: list[Any]) -> tuple[list[Any], dict[str, Any]] | None:
        """Arguments of `overload` that say exactly `op`, or None."""
        left = {k: v for k, v in op.attrs.items() if k != "key" or not op.defn.random}
        rest, numbers = list(operands), torch._C._should_allow_numbers_as_tensors(_packet(overload))
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        chosen: list[tuple[Any, Any]] = []
        for argument in overload._schema.arguments:
            kind, name = str(argument.type), argument.name
            if name in left:
                value = left.pop(name)
                if value is None and "Optional" not in kind:
                    return None
                value = self.attribute(value)
            elif "List[" in kind and "Tensor" in kind:
                value, rest = [None if x is None else self.tensor(x) for x in rest], []
            elif rest and "Tensor" in kind:
                value = rest.pop(0)
                if isinstance(value, Number) and numbers and self._neutral(value, op):
                    value = value.value
                value = self.tensor(value)
            elif rest and kind in ("number", "Union[bool, complex, float, int]"):
                value = rest.pop(0)
                if not isinstance(value, Number) or not self._neutral(value, op):
                    return None
                value = value.value
            elif name == "device":
                value = self.device()
            elif argument.has_default_value():
                continue
            elif "Optional" in kind:
                value = None
            else:
                return None
            chosen.append((argument, value))
        if rest or any(not _is_default(op, k, v) for k, v in left.items()):
            return None
        for argument, value in chosen:
            if argument.kwarg_only or len(args) < overload._schema.arguments.index(argument):
                kwargs[argument.name] = value
            else:
                args.append(value)
        return args, kwargs

    def _neutral(self, number: Number, op: Op) -> bool:
        """Whether passing the Python number promotes as the typed constant does."""
        others = [v.type for v in op.operands if v.op.name not in ("const", "size")]
        if not others:
            return False
        sample = number.value if isinstance(number.value, (bool, int, float)) else 1
        try:
            typed = promote(*others, number.type)
            free = promote(*others, TensorType(scalar_dtype(sample, [t.dtype for t in others]), ()))
        except IRError:
            return False
        return typed is free

    # ---- calls outside the vocabulary ----

    def opaque(self, op: Op, operands: list[Any]) -> fx.Node:
        """The original call, its structure filled with the operands."""
        target, attrs = find_target(op.attrs["target"]), op.attrs
        schema = getattr(target, "_schema", None)
        kinds = {a.name: str(a.real_type) for a in schema.arguments} if schema else {}
        names = [a.name for a in schema.arguments] if schema else []

        def fill(item: Any, kind: str) -> Any:
            if isinstance(item, Slot):
                return self.tensor(operands[item.index])
            if isinstance(item, tuple):
                return [fill(part, kind) for part in item]
            if isinstance(item, str):
                return self._named(item, kind)
            return self.attribute(item)

        args = [fill(x, kinds.get(n, "")) for x, n in _pad(attrs["args"], names)]
        kwargs = {k: fill(x, kinds.get(k, "")) for k, x in attrs["kwargs"]}
        return self.call(target, *args, **kwargs)

    def _named(self, text: str, kind: str) -> Any:
        """What a string in an opaque call stands for, by the schema's type."""
        if "Device" in kind:
            return self.device()
        if text.startswith("torch."):
            return getattr(torch, text.removeprefix("torch."), text)
        if kind in ("number", "Scalar", "Optional[number]") or re.fullmatch(r"\(.*j\)", text):
            return complex(text)
        if not kind and text in self.modules:
            name = re.sub(r"\W", "_", text)
            self.root.add_module(name, self.modules[text])
            return self.fx.get_attr(name)
        return text


def find_overload(name: str) -> Any:
    """The OpOverload of a name as in `OpDef.aten`, or None where this torch has none."""
    *space, packet, overload = name.split(".")
    found = getattr(torch.ops, space[0] if space else "aten")
    return getattr(getattr(found, packet, None), overload, None)


def find_target(name: str) -> Any:
    """The operator of an `opaque` op. Raises BackendError where it is not registered."""
    parts = name.split(".")
    found: Any = torch.ops if len(parts) == 3 else torch.ops.higher_order
    try:
        for part in parts:
            found = getattr(found, part)
    except (AttributeError, RuntimeError) as error:
        raise BackendError(f"no operator is registered as {name!r}: import what defines it") from error
    return found


def _packet(overload: Any) -> str:
    return overload._schema.name.split("::")[1]


def _is_default(op: Op, name: str, value: Any) -> bool:
    default = op.defn.attr_kinds[name].default
    if default is REQUIRED:
        return False
    return attr_key({"": default}) == attr_key({"": value})


def _typed(value: Any, dtype: DType) -> Any:
    """The number as the Python type that torch promotes as `dtype`."""
    return {"b": bool, "i": int, "u": int, "f": float}.get(dtype.kind, lambda x: x)(value)


def _returns_tuple(target: str) -> bool:
    schema = getattr(find_target(target), "_schema", None)
    return schema is None or len(schema.returns) != 1 or "List" in str(schema.returns[0].type)


def _pad(args: tuple[Any, ...], names: Sequence[str]) -> list[tuple[Any, str]]:
    return [(x, names[i] if i < len(names) else "") for i, x in enumerate(args)]
