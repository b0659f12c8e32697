"""Graph -> torch-dialect text, by the aten schemas that the eager backend calls by."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...ir.core import Op, Value, build, building
from ...ir.dims import Dim, Poly, substitute, symbols
from ...ir.errors import BackendError
from ...ir.graph import Graph
from ...ir.interpret import body_graph
from ...ir.types import DType, TensorType, f64
from ..lowering import Lowering, find_overload
from .bodies import UNSAFE, respelled
from .places import guard

ELEMENT = {"bool": "i1", "u8": "ui8", "i8": "si8", "i16": "si16", "i32": "si32", "i64": "si64",
           "f16": "f16", "bf16": "bf16", "f32": "f32", "f64": "f64", "c64": "complex<f32>",
           "c128": "complex<f64>"}  # fmt: skip
"""The torch dialect's element types."""

_CODE = {torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4,
         torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.complex64: 9,
         torch.complex128: 10, torch.bool: 11, torch.bfloat16: 15}  # fmt: skip
_LISTS = {"int": "int", "float": "float", "bool": "bool", "Tensor": "vtensor",
          "Optional[Tensor]": "optional<vtensor>"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ref:
    """A value of the text: its name, its type in the text, its dtype."""

    name: str
    type: str
    dtype: DType | None = None


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant that nothing has used yet; it is written in the dtype its user computes in."""

    value: bool | int | float
    dtype: DType


def emit(graph: Graph, sizes: Mapping[str, int] | None = None) -> str:
    """`graph` as one function `@main` of the torch dialect, the same text every time.

    It takes the inputs, then the params in the order of `graph.params`, and returns the outputs,
    then the updates. Symbolic dims are fixed to `sizes`: the text is for those sizes only. Sources
    are kept as locations. Raises BackendError for an op or dtype that torch-mlir has no word for
    and for a dim without a size, IRError for sizes that the graph cannot have.
    """
    return Emitter(specialise(graph, sizes or {})).text()


def specialise(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """`graph` with every symbolic dim replaced by its size; itself when it has none."""
    names = list(dict.fromkeys(symbols(_dims(graph))))
    missing = [name for name in names if name not in sizes]
    if missing:
        given = f"given sizes={dict(sizes)}" if sizes else "given no sizes"
        raise BackendError(
            f"the MLIR text of graph {graph.name!r} is for fixed sizes: {given}, "
            f"pass sizes={{{', '.join(f'{name!r}: ...' for name in names)}}}"
        )
    if not names:
        return graph

    def fixed(item: Any) -> Any:
        if isinstance(item, Poly):
            return substitute(item, sizes)
        if isinstance(item, TensorType):
            return item.with_(shape=tuple(map(fixed, item.shape)))
        return tuple(map(fixed, item)) if isinstance(item, tuple) else item

    new: dict[Value, Value] = {}
    with building() as builder:
        for op in graph.ops():
            builder.source, builder.via = op.source, op.via
            inputs = [None if v is None else new[v] for v in op.inputs]
            built = build(op.defn, inputs, {k: fixed(v) for k, v in op.attrs.items()})
            new.update(zip(op.results, built.results, strict=True))
    updates = {k: new[v] for k, v in graph.updates.items()}
    return Graph(graph.name, [new[v] for v in graph.inputs], [new[v] for v in graph.outputs], updates)


def _dims(item: Any) -> Iterator[Dim]:
    """Every dim in a graph, or in an attribute."""
    if isinstance(item, Graph):
        for op in item.ops():
            yield from _dims((*op.types, *op.attrs.values()))
    elif isinstance(item, Poly):
        yield item
    elif isinstance(item, TensorType):
        yield from item.shape
    elif isinstance(item, tuple):
        for part in item:
            yield from _dims(part)


class Emitter(Lowering):
    """Chooses overloads as the eager lowering does, and writes them as text.

    graph: without symbolic dims. guarded: indices are brought into range before they are used, and
    the text gives one more result for each, whether all were; `checks` says which. Out of range,
    torch-mlir's code ends the process or reads what is not the tensor's.
    """

    def __init__(self, graph: Graph, *, guarded: bool = False):
        super().__init__(graph)
        self.guarded = guarded
        self.lines: list[str] = []
        self.constants: dict[str, Ref] = {}
        self.checks: list[str] = []
        self.passed: list[Ref] = []
        self.source = ""
        self.count = 0

    def text(self) -> str:
        """The whole function."""
        graph, results, arguments = self.graph, dict[Value, Any](), []
        params = {op.attrs["name"]: op.results[0] for op in graph.ops() if op.name == "param"}
        for i, value in enumerate((*graph.inputs, *(params[name] for name in graph.params))):
            name = value.op.attrs["name"]
            ref = Ref(f"%arg{i}", tensor_type(value.type, repr(name)), value.dtype)
            results[value] = ref
            arguments.append(f"{ref.name}: {ref.type}{location(name)}")
        for op in graph.ops():  # a param that is read in several places is one argument
            if op.name == "param":
                results[op.results[0]] = results[params[op.attrs["name"]]]
        self.ops(graph, results)
        wanted = [self.reference(results[v]) for v in (*graph.outputs, *graph.updates.values())]
        wanted += self.passed
        types = ", ".join(ref.type for ref in wanted)
        names = ", ".join(ref.name for ref in wanted)
        self.lines.append(f"return {names} : {types}" if wanted else "return")
        body = "".join(f"  {line}\n" for line in self.lines)
        takes = ",\n    ".join(arguments)
        return f"func.func @main({takes}) -> ({types}) {{\n{body}}}\n"

    # ---- one op ----

    def op(self, op: Op, operands: list[Any]) -> list[Any]:
        """The results of one op. Raises BackendError where torch-mlir has no way to say it."""
        if op.name in ("const", "size"):
            return [Literal(op.attrs["value"], op.types[0].dtype)]
        outer, self.source = self.source, op.source or self.source
        try:
            return self._op(op, operands)
        finally:
            self.source = outer

    def _op(self, op: Op, operands: list[Any]) -> list[Any]:
        if self.guarded:
            operands = self._guarded(op, operands)
        if op.defn.random:
            raise BackendError(f"the mlir backend cannot run {_what(op)}{_at(self.source)}")
        body = respelled(op)
        if body is not None:
            return self._inline(body, operands)
        if op.name == "index_put":  # torch takes the indices before the values
            x, values, *indices = operands
            overload = torch.ops.aten.index_put.default
            return self.write(op, overload, [x, indices, values, op.attrs["accumulate"]], {})
        for name in op.defn.aten:
            overload = find_overload(name)
            known = overload and overload.namespace == "aten" and name not in UNSAFE
            fitted = known and self.fit(op, overload, operands)
            if fitted:
                return self.write(op, overload, *fitted)
        if op.defn.body is not None:
            return self._inline(body_graph(op), operands)
        raise BackendError(f"the mlir backend cannot run {_what(op)}{_at(self.source)}")

    def _inline(self, body: Graph, operands: list[Any]) -> list[Any]:
        inner = dict(zip(body.inputs, [x for x in operands if x is not None], strict=True))
        self.ops(body, inner)
        return [inner[v] for v in body.outputs]

    def _guarded(self, op: Op, operands: list[Any]) -> list[Any]:
        operands = list(operands)
        for place, size, body in guard(op):
            passed, operands[place] = self._inline(body, [operands[place]])
            self.passed.append(self.reference(passed))
            self.checks.append(
                f"{op!r}: an index is out of range for an axis of size {size}{_at(self.source)}"
            )
        return operands

    # ---- what the choice of an overload asks for ----

    def tensor(self, item: Any) -> Any:
        """A Ref or Literal as it is: what it becomes is decided when the call is written."""
        return item

    def dim(self, dim: Dim) -> Any:
        """A size."""
        return substitute(dim, {})

    def device(self) -> Any:
        """None: the text has no devices."""
        return None

    # ---- text ----

    def write(self, op: Op, overload: Any, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        """One call, with every argument of the schema spelt out; Refs of its results."""
        given, schema = [], overload._schema
        wide = any(isinstance(x, Ref) and x.dtype is f64 for x in (*args, *kwargs.values()))
        for i, argument in enumerate(schema.arguments):
            if i < len(args):
                value = args[i]
            else:
                value = kwargs.get(argument.name, argument.default_value)
            given.append(self.argument(str(argument.real_type), value, wide))
        types = [tensor_type(t, f"a result of {op.name}") for t in op.types]
        name = f"torch.{schema.name.replace('::', '.')}"
        name += f".{schema.overload_name}" if schema.overload_name else ""
        call = f"{name} {', '.join(r.name for r in given)} : {', '.join(r.type for r in given)}"
        names = self.line(f"{call} -> {', '.join(types)}", len(types))
        return [Ref(n, t, x.dtype) for n, t, x in zip(names, types, op.types, strict=True)]

    def line(self, text: str, results: int = 1, source: str | None = None) -> list[str]:
        """Write one operation; the names of its results."""
        where = location(self.source if source is None else source)
        name = f"%{self.count}"
        self.count += 1
        many = f":{results}" if results > 1 else ""
        self.lines.append(f"{name}{many} = {text}{where}")
        return [f"{name}#{i}" for i in range(results)] if many else [name]

    def argument(self, kind: str, value: Any, wide: bool) -> Ref:
        """One argument, for a schema that wants this kind."""
        if isinstance(value, (Ref, Literal)):
            return self.reference(value, wide)
        if value is None:
            return self.constant("torch.constant.none", "!torch.none")
        if isinstance(value, torch.dtype):
            return self.constant(f"torch.constant.int {_CODE[value]}", "!torch.int")
        if isinstance(value, (list, tuple)):
            return self._list(kind, value, wide)
        if isinstance(value, bool) and "bool" in kind and "number" not in kind:
            return self.constant(f"torch.constant.bool {str(value).lower()}", "!torch.bool")
        if isinstance(value, str):
            return self.constant(f"torch.constant.str {quoted(value)}", "!torch.str")
        if isinstance(value, float) or (isinstance(value, int) and "float" in kind and "int" not in kind):
            return self.constant(f"torch.constant.float {_double(float(value))}", "!torch.float")
        if isinstance(value, int):
            return self.constant(f"torch.constant.int {int(value)}", "!torch.int")
        raise BackendError(f"a {type(value).__name__} has no place in MLIR text{_at(self.source)}")

    def _list(self, kind: str, values: Sequence[Any], wide: bool) -> Ref:
        found = re.search(r"List\[(Optional\[Tensor\]|\w+)", kind)
        element = found.group(1).replace("SymInt", "int") if found else "int"
        refs = [self.argument(element, x, wide) for x in values]
        names, types = ", ".join(r.name for r in refs), ", ".join(r.type for r in refs)
        type = f"!torch.list<{_LISTS[element]}>"
        text = f"torch.prim.ListConstruct {names} : ({types}) -> {type}"
        return self.constant(text, type)

    def constant(self, text: str, type: str) -> Ref:
        """What depends on no data, or only on what is written above: once for each text."""
        if text not in self.constants:
            self.constants[text] = Ref(self.line(text, source="")[0], type)
        return self.constants[text]

    def reference(self, item: Ref | Literal, wide: bool = False) -> Ref:
        """A tensor; a literal counts in full precision beside operands that do."""
        if isinstance(item, Ref):
            return item
        dtype = f64 if wide and item.dtype.is_float else item.dtype
        type = tensor_type(TensorType(dtype, ()), f"{item.value!r}")
        text = f"torch.vtensor.literal(dense<{_element(item.value, dtype)}> : tensor<{_signless(dtype)}>)"
        made = self.constant(f"{text} : {type}", type)
        return Ref(made.name, type, dtype)


def tensor_type(type: TensorType, what: str) -> str:
    """`!torch.vtensor<[2,3],f32>`. Raises BackendError for a dtype the dialect lacks."""
    if type.dtype.name not in ELEMENT:
        raise BackendError(f"{what} is {type}: MLIR has no {type.dtype}; it has {', '.join(ELEMENT)}")
    return f"!torch.vtensor<[{','.join(map(str, type.shape))}],{ELEMENT[type.dtype.name]}>"


def quoted(text: str) -> str:
    """A string of MLIR: what is not plain ASCII is written as the hex of its bytes."""
    plain = (chr(b) if 32 <= b < 127 and b not in (34, 92) else f"\\{b:02X}" for b in text.encode())
    return f'"{"".join(plain)}"'


def location(source: str) -> str:
    """Where something comes from, ` loc("...")`, or nothing."""
    return f" loc({quoted(source)})" if source else ""


def _double(value: float) -> str:
    if math.isfinite(value):
        return f"{value:.17e}"
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def _element(value: bool | int | float, dtype: DType) -> str:
    """A number inside `dense<...>`."""
    if dtype.kind == "b":
        return str(bool(value)).lower()
    if dtype.kind in "ui":
        return str(int(value))
    if math.isfinite(value):
        return f"{float(value):.17e}"
    bits = {"f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F800000, "f64": 0x7FF0 << 48}[dtype.name]
    half = {"f16": 0x0200, "bf16": 0x0040, "f32": 0x00400000, "f64": 0x0008 << 48}[dtype.name]
    sign = 1 << (dtype.bits - 1) if value < 0 else 0
    return f"0x{bits + (half if math.isnan(value) else sign):0{dtype.bits // 4}X}"


def _signless(dtype: DType) -> str:
    return ELEMENT[dtype.name].replace("si", "i") if dtype.kind == "i" else ELEMENT[dtype.name]


def _what(op: Op) -> str:
    if op.name == "opaque":
        return f"{op.attrs['target']}, which is outside the vocabulary"
    return f"{op!r}, which is random: its numbers would not be torch's" if op.defn.random else f"{op!r}"


def _at(source: str) -> str:
    return f"\n    at {source}" if source else ""
