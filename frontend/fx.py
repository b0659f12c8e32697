"""One exported program to one Graph: nodes become ops, symbolic sizes become dims, asserts checks."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..ir import CaptureError, TensorType, Value, building, symbol
from ..ir.core import OPS
from ..ir.dims import Poly, symbols
from ..ir.types import DTYPES, scalar_dtype
from .aten import DTYPE_OF, import_call, opaque
from .source import source_of
from .symbols import Check, InexpressibleError, Names

F64 = DTYPES["f64"]
_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass
class Imported:
    """What the nodes of a program became.

    values: by node name: a Value, a tuple of Values, a Dim, a Python constant or None. checks: asserts
    about sizes. asserts: (bool tensor, message). bound: where each data-dependent symbol can be read:
    (value, axis). modules: bodies of higher-order ops by name.
    """

    values: dict[str, Any] = field(default_factory=dict)
    checks: list[Check | None] = field(default_factory=list)
    asserts: list[tuple[Value, str]] = field(default_factory=list)
    bound: dict[str, tuple[Value, int]] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)


def import_nodes(
    module: torch.fx.GraphModule, placeholders: Mapping[str, Any], names: Names
) -> Imported:
    """The ops of an exported program's graph module, with `placeholders` (by node name) as inputs.

    Raises CaptureError, with the source line, for a node that no graph can hold.
    """
    importer = _Importer(module, names)
    result = importer.result
    with building() as builder:
        for node in module.graph.nodes:
            if node.op == "output":
                break
            builder.source = source_of(node.meta)
            if node.op == "placeholder":
                result.values[node.name] = importer.placeholder(placeholders[node.name], node)
            else:
                try:
                    result.values[node.name] = importer.node(node)
                except CaptureError as error:
                    where = f"\n    at {builder.source}" if builder.source else ""
                    raise CaptureError(f"{error}{where}") from error
    return result


def tensor_type(tensor: Any, names: Names) -> TensorType:
    """The type of a (fake) tensor. Raises CaptureError for a dtype the IR lacks."""
    if tensor.dtype not in DTYPE_OF:
        raise CaptureError(f"a tensor of dtype {tensor.dtype} has no place in a graph")
    if tensor.layout is not torch.strided:
        raise CaptureError(f"a tensor of layout {tensor.layout} has no place in a graph")
    return TensorType(DTYPE_OF[tensor.dtype], tuple(names.dim(size) for size in tensor.shape))


class _Importer:
    def __init__(self, module: torch.fx.GraphModule, names: Names):
        self.module, self.names = module, names
        self.result = Imported()
        self.differentiable: set[Value] = set()  # gradients could flow into these
        self.knows: dict[Value, frozenset[str]] = {}  # data-dependent symbols bound upstream

    def placeholder(self, value: Any, node: torch.fx.Node) -> Any:
        fake = node.meta.get("val")
        if isinstance(value, Value) and isinstance(fake, torch.Tensor):
            if fake.requires_grad or (value.op.name == "input" and value.dtype.kind in "fc"):
                self.differentiable.add(value)
        return value

    def node(self, node: torch.fx.Node) -> Any:
        if node.op == "get_attr":
            return self.attribute(str(node.target))
        if node.op != "call_function":
            raise CaptureError(f"a graph has no place for a {node.op} node ({node.target})")
        special = _SPECIAL.get(node.target) if not isinstance(node.target, str) else None
        if special is not None:
            return special(self, node)
        fake = node.meta.get("val")
        if isinstance(fake, _SYMBOLIC) or (fake is not None and isinstance(fake, (bool, int, float))):
            return self.scalar(node, fake)
        if node.target is operator.getitem:
            return self.lookup(node.args[0])[node.args[1]]
        return self.call(node, fake)

    # ---- values and arguments --------------------------------------------------------------------

    def lookup(self, item: Any) -> Any:
        return self.result.values[item.name] if isinstance(item, torch.fx.Node) else item

    def argument(self, item: Any, kind: str = "") -> Any:
        """An fx argument as import_call takes it, but for symbolic floats."""
        if isinstance(item, torch.fx.Node):
            value = self.result.values[item.name]
            if isinstance(value, _Float) and "Tensor" not in kind:
                raise CaptureError(
                    f"a number computed from symbolic sizes, {value.expr}, is used where torch takes a "
                    "plain number; make the sizes it is computed from static"
                )
            return value
        if isinstance(item, (list, tuple)):
            return [self.argument(part, kind) for part in item]
        if isinstance(item, dict):
            return {key: self.argument(part, kind) for key, part in item.items()}
        return item

    def call(self, node: torch.fx.Node, fake: Any) -> Any:
        target: Any = node.target
        schema = getattr(target, "_schema", None)
        kinds = {i: str(a.type) for i, a in enumerate(schema.arguments)} if schema else {}
        named = {a.name: str(a.type) for a in schema.arguments} if schema else {}
        args = [self.argument(item, kinds.get(i, "")) for i, item in enumerate(node.args)]
        kwargs = {key: self.argument(item, named.get(key, "")) for key, item in node.kwargs.items()}
        beside = _values((args, kwargs))
        args = [self.wrapped(x, beside) if isinstance(x, _Float) else x for x in args]
        if target in _STRIDED:
            args[0] = self.laid_out(node, args[0])
        fakes = list(fake) if isinstance(fake, (list, tuple)) else [] if fake is None else [fake]
        present = [i for i, item in enumerate(fakes) if isinstance(item, torch.Tensor)]
        if any(item is not None and not isinstance(item, torch.Tensor) for item in fakes):
            raise CaptureError(f"{target} returns something that is no tensor")
        types = [tensor_type(fakes[i], self.names) for i in present]
        operands = _values((args, kwargs))
        late = self.late_symbols((args, kwargs)) - self.known(operands)
        if target is torch.ops.aten.detach.default and self.differentiable.isdisjoint(operands):
            results: tuple[Value, ...] = import_call(target, args, kwargs, types)
        elif late or target is torch.ops.aten.detach.default:
            results = opaque(target, args, kwargs, types)
        else:
            results = import_call(target, args, kwargs, types)
        if late:
            results = self.after(results, [self.result.bound[name][0] for name in sorted(late)])
        self.note(results, operands)
        if not isinstance(fake, (list, tuple)):
            return results[0] if results else None
        filled: list[Any] = [None] * len(fakes)
        for i, value in zip(present, results):
            filled[i] = value
        return tuple(filled)

    def laid_out(self, node: torch.fx.Node, value: Value) -> Value:
        """The operand of an op that reads memory by strides, made contiguous as it was at capture.

        Types have no strides, and copies that only change them are not kept.
        """
        operand = node.args[0]
        fake = operand.meta["val"] if isinstance(operand, torch.fx.Node) else None
        if node.target is not aten.view.dtype and node.target is not aten.view_as_complex.default:
            if fake is None or not fake.is_contiguous() or fake.storage_offset() != 0:
                raise CaptureError(
                    "as_strided reads the memory of a tensor that is not contiguous, which no graph can "
                    "follow; call .contiguous() before it, or use slicing, unfold or expand"
                )
        layout = {"memory_format": torch.contiguous_format}
        return opaque(aten.clone.default, [value], layout, [value.type])[0]

    def note(self, results: tuple[Value, ...], operands: list[Value]) -> None:
        """Remember what gradients flow through, and where data-dependent sizes can be read."""
        flows = not self.differentiable.isdisjoint(operands)
        inherited = self.known(operands)
        for value in results:
            if flows and value.dtype.kind in "fc":
                self.differentiable.add(value)
            own = set(inherited)
            for axis, dim in enumerate(value.shape):
                for name in symbols(dim):
                    if name in self.names.unbacked and name not in own and dim == symbol(name):
                        own.add(name)
                        self.result.bound.setdefault(name, (value, axis))
            if own:
                self.knows[value] = frozenset(own)

    def known(self, operands: list[Value]) -> set[str]:
        """Data-dependent symbols that are bound once `operands` exist."""
        return set().union(*(self.knows.get(v, frozenset()) for v in operands)) if self.knows else set()

    def late_symbols(self, item: Any) -> set[str]:
        """Data-dependent symbols in the arguments of a call."""
        if not self.names.unbacked:
            return set()
        if isinstance(item, Poly):
            return {name for name in symbols(item) if name in self.names.unbacked}
        if isinstance(item, dict):
            item = tuple(item.values())
        if isinstance(item, (list, tuple)):
            return set().union(*map(self.late_symbols, item)) if item else set()
        return set()

    def after(self, results: tuple[Value, ...], binders: list[Value]) -> tuple[Value, ...]:
        """The same opaque call, made to wait until `binders` exist, whose shapes give it its sizes."""
        op = results[0].op
        again = OPS["opaque"](*op.inputs, *binders, **op.attrs)
        return (again,) if isinstance(again, Value) else tuple(again)

    # ---- scalars ---------------------------------------------------------------------------------

    def scalar(self, node: torch.fx.Node, fake: Any) -> Any:
        """Arithmetic on sizes: a Dim or a Python number; floats and conditions stay expressions."""
        if isinstance(fake, torch.SymInt):
            return self.names.dim(fake)
        if isinstance(fake, (torch.SymFloat, torch.SymBool)):
            return _Float(fake.node.expr)
        return fake

    def item(self, node: torch.fx.Node) -> Any:
        """`tensor.item()`: a new size symbol, bound by a tensor that many elements long.

        Of a truth value the symbol is 0 or 1, and what is known of it is that it is 1.
        """
        fake: Any = node.meta.get("val")
        truth = self.names.truth(fake.node.expr) if isinstance(fake, torch.SymBool) else None
        if not isinstance(fake, torch.SymInt) and truth is None:
            if isinstance(fake, (bool, int, float)):
                return fake
            raise CaptureError(
                "the model reads a number out of a tensor with .item(); keep it a tensor (0-d tensors take "
                "part in arithmetic), or compute it before the model and pass it in"
            )
        dim = self.names.dim(fake) if truth is None else truth
        if not isinstance(dim, Poly) or dim != symbol(str(dim)):
            return dim
        if str(dim) not in self.result.bound:
            i64 = DTYPES["i64"]
            counts = OPS["reshape"](self.lookup(node.args[0]), shape=(1,))
            if counts.dtype is not i64:
                counts = OPS["cast"](counts, dtype=i64)
            long = TensorType(i64, (dim,))
            (binder,) = opaque(torch.ops.aten.repeat_interleave.Tensor, [counts], {}, [long])
            self.result.bound[str(dim)] = (binder, 0)
            self.knows[binder] = frozenset({str(dim)}) | frozenset(self.known([counts]))
        return dim if truth is None else _Float(fake.node.expr)

    def wrapped(self, number: _Float, beside: list[Value]) -> Value:
        """A symbolic float as an operand that promotes as a Python number does beside tensors."""
        value = self.float(number.expr)
        if any(other.rank and other.dtype.kind in "fc" for other in beside):
            return value  # a 0-d operand does not widen one with axes
        dtype = scalar_dtype(1.0, [other.dtype for other in beside])
        return OPS["cast"](value, dtype=dtype)

    def float(self, expr: Any) -> Value:
        """A float expression of sizes as a 0-d f64 value. Raises CaptureError."""
        kind = type(expr).__name__
        if getattr(expr, "is_number", False):
            return OPS["const"](value=float(expr), dtype=F64)
        try:
            return OPS["size"](value=self.names.expression(expr), dtype=F64)
        except InexpressibleError:
            pass
        args = expr.args
        if kind in ("ToFloat", "Identity"):
            return self.float(args[0])
        if kind in _FLOATS:
            total = self.float(args[0])
            for arg in args[1:]:
                total = OPS[_FLOATS[kind]](total, self.float(arg))
            return total
        raise CaptureError(
            f"the model computes with {expr}, a number made from symbolic sizes that subquad cannot "
            "express; make the sizes it is computed from static"
        )

    # ---- what is not a tensor op -----------------------------------------------------------------

    def attribute(self, name: str) -> Any:
        value: Any = self.module
        for part in name.split("."):
            value = getattr(value, part)
        if isinstance(value, nn.Module):
            self.result.modules[name] = value
            return name
        raise CaptureError(f"the model reads {name!r}, a {type(value).__name__}, in the middle of its graph")

    def assertion(self, node: torch.fx.Node) -> None:
        """A run-time assert: about sizes, a check of each call; about data, a hidden output."""
        subject, message = self.lookup(node.args[0]), str(node.args[1] if len(node.args) > 1 else "")
        if isinstance(subject, _Float):
            self.result.checks.append(self.names.check(subject.expr, where=source_of(node.meta)))
        elif isinstance(subject, Value):
            self.result.asserts.append((subject, message or "an assertion of the model failed"))
        elif not subject:
            raise CaptureError(f"the model asserts what is never true: {message}")

    def nothing(self, node: torch.fx.Node) -> None:
        """A node that only restates what types and facts already say."""


@dataclass(frozen=True, slots=True)
class _Float:
    """A symbolic float or condition: sympy's expression, converted where it is used."""

    expr: Any


_FLOATS = {
    "Add": "add", "Mul": "mul", "Pow": "pow", "FloatPow": "pow", "IntTrueDiv": "div",
    "FloatTrueDiv": "div", "OpaqueUnaryFn_sqrt": "sqrt", "OpaqueUnaryFn_exp": "exp",
    "OpaqueUnaryFn_log": "log",
}  # fmt: skip

aten = torch.ops.aten
_STRIDED = frozenset({
    aten.as_strided.default, aten.as_strided_copy.default, aten.view.dtype, aten.view_as_complex.default,
})  # fmt: skip
_SPECIAL: dict[Any, Callable[[_Importer, torch.fx.Node], Any]] = {
    aten.item.default: _Importer.item,
    aten._local_scalar_dense.default: _Importer.item,
    aten._assert_scalar.default: _Importer.assertion,
    aten._assert_async.msg: _Importer.assertion,
    aten._assert_async.default: _Importer.assertion,
    aten._assert_tensor_metadata.default: _Importer.nothing,
    aten.sym_constrain_range.default: _Importer.nothing,
    aten.sym_constrain_range_for_size.default: _Importer.nothing,
    torch._check: _Importer.assertion,
}


def _values(item: Any) -> list[Value]:
    """Every Value in a nested structure, in order."""
    if isinstance(item, Value):
        return [item]
    if isinstance(item, dict):
        item = tuple(item.values())
    return [v for part in item for v in _values(part)] if isinstance(item, (list, tuple)) else []
