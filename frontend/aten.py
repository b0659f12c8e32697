"""From a call of an aten overload to values of the IR, driven by the overload's schema.

A declared op lists the overloads it means (`OpDef.aten`). Of the schema's arguments those named like
one of the op's attributes become attributes, tensors and numbers fill its operands in order, and what
is left must have its default value. Overloads that are spelt unlike any op are in `adapters`. A call
outside both becomes `opaque`, so import never fails for want of vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ..ir.attributes import Slot
from ..ir.core import OPS, OpDef, Value, fresh_key
from ..ir.dims import Poly
from ..ir.errors import CaptureError, IRError
from ..ir.types import DTYPES, DType, TensorType, bool_, f32, scalar_dtype

DTYPE_OF: dict[torch.dtype, DType] = {getattr(torch, t.torch): t for t in DTYPES.values()}
"""The IR's dtype of each torch dtype that has one."""

PLACEMENT = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking"})
"""Arguments that say where and how a tensor is stored, which the IR leaves to backends."""

Importer = Callable[..., Any]
"""`(out=types, **arguments by schema name) -> Value | tuple[Value, ...] | None` (None: not this way)."""

MISFIT = (IRError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What an importer may raise for a call that it cannot express."""


def import_call(
    target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], types: Sequence[TensorType]
) -> tuple[Value, ...]:
    """The values of `target(*args, **kwargs)`, one for each of `types`.

    target: an OpOverload or a higher-order operator. args, kwargs: its arguments, with Values for
    tensors and Dims for symbolic ints. types: the result types that capture observed; a vocabulary
    op that infers others is not used. Raises CaptureError for an argument the IR cannot hold.
    """
    types = tuple(types)
    for results in spellings(target, args, kwargs, types):
        if len(results) == len(types) and all(v.type == t for v, t in zip(results, types)):
            return results
    return opaque(target, args, kwargs, types)


def spellings(
    target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], types: Sequence[TensorType]
) -> Iterator[tuple[Value, ...]]:
    """What the vocabulary has for a call, one way after another, whatever types that infers."""
    name = overload_name(target)
    if not name or target._schema.is_mutable:
        return
    importers = _importers(name)
    bound = _bind(target._schema, args, kwargs) if importers else {}
    for importer in importers:
        try:
            results = importer(**bound, out=tuple(types))
        except MISFIT:
            continue
        if results is not None:
            yield (results,) if isinstance(results, Value) else tuple(results)


def overload_name(target: Any) -> str:
    """`add.Tensor`, `subquad.linear_attention.default`, or "" for what is no OpOverload."""
    if not isinstance(target, torch._ops.OpOverload):
        return ""
    return str(target).removeprefix("aten.")


def find_overload(name: str) -> Any:
    """The OpOverload of a name as in `OpDef.aten`, or None where this torch has none."""
    *space, packet, overload = name.split(".")
    found = getattr(torch.ops, space[0] if space else "aten")
    return getattr(getattr(found, packet, None), overload, None)


# ---- the vocabulary ------------------------------------------------------------------------------


def _importers(name: str) -> tuple[Importer, ...]:
    if name not in _cache:
        plain = [by_schema(OPS[op], find_overload(name)) for op in declared().get(name, ())]
        _cache[name] = (ADAPTERS[name], *plain) if name in ADAPTERS else tuple(plain)
    return _cache[name]


_cache: dict[str, tuple[Importer, ...]] = {}


def declared() -> dict[str, list[str]]:
    """Names of the ops that mean each overload (ops may be declared after this module loads)."""
    if _count[0] != len(OPS):
        _cache.clear()
        _table.clear()
        for defn in OPS.values():
            for name in defn.aten:
                _table.setdefault(name, []).append(defn.name)
        _count[0] = len(OPS)
    return _table


_table: dict[str, list[str]] = {}
_count = [0]


def supported() -> frozenset[str]:
    """Names of the overloads that import into the vocabulary."""
    return frozenset(declared()) | frozenset(ADAPTERS)


def _bind(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument of the schema by name, defaults filled in, a lone int for a list repeated."""
    bound = {a.name: a.default_value for a in schema.arguments}
    bound.update(zip((a.name for a in schema.arguments), args))
    bound.update(kwargs)
    for argument in schema.arguments:
        value = bound[argument.name]
        if isinstance(value, (int, Poly)) and "List[int]" in str(argument.type):
            bound[argument.name] = [value] * (argument.N or 1)
    return bound


def by_schema(defn: OpDef, overload: Any) -> Importer:
    """An importer that follows the order of operands and the names of attributes.

    It raises IRError for what the op refuses, and for arguments it has no place for.
    """

    def importer(*, out: tuple[TensorType, ...], **given: Any) -> Any:
        operands: list[Any] = []
        attrs: dict[str, Any] = {}
        for argument in overload._schema.arguments:
            name, value = argument.name, given[argument.name]
            if name in defn.attr_kinds:
                if value is not None or defn.attr_kinds[name].optional:
                    attrs[name] = dtype_of(value) if isinstance(value, torch.dtype) else value
            elif name in PLACEMENT or same(value, argument.default_value):
                if is_tensor(argument.type):
                    operands.append(None)
            elif isinstance(value, (list, tuple)) and is_tensor(argument.type):
                operands += value
            elif isinstance(value, (Value, bool, int, float, Poly)):
                operands.append(value)
            else:
                raise IRError(f"{defn.name} has no place for {name}={value!r}")
        if defn.random:
            attrs["key"] = fresh_key()
        return defn(*coerced(defn, operands, torch.Tag.pointwise in overload.tags), **attrs)

    return importer


def same(value: Any, default: Any) -> bool:
    """Whether an argument has its default value (a Value never has, unless it is None)."""
    if isinstance(value, Value) or isinstance(default, Value):
        return False
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return len(value) == len(default) and all(map(same, value, default))
    return type(value) is type(default) and value == default


def is_tensor(type: Any) -> bool:
    """Whether a schema type is Tensor, Tensor?, Tensor[] or Tensor?[]."""
    return "Tensor" in str(type)


def coerced(defn: OpDef, operands: Sequence[Any], is_math: bool) -> list[Any]:
    """Operands as torch would convert them: numbers to bool for logic, ints to float for math."""
    params = defn.params
    result = []
    for i, x in enumerate(operands):
        kinds = params[min(i, len(params) - 1)].kinds if params else ""
        if isinstance(x, Poly):
            dtypes = [y.dtype for y in operands if isinstance(y, Value)]
            x = OPS["size"](value=x, dtype=scalar_dtype(1, dtypes))
        elif isinstance(x, Value) and x.dtype.kind not in kinds:
            if kinds == "b":
                x = OPS["cast"](x, dtype=bool_)
            elif is_math and "f" in kinds and "i" not in kinds and x.dtype.kind in "bui":
                x = OPS["cast"](x, dtype=f32)
        result.append(x)
    return result


def dtype_of(dtype: torch.dtype) -> DType:
    """The IR's dtype. Raises CaptureError for quantised and other dtypes that it lacks."""
    if dtype not in DTYPE_OF:
        raise CaptureError(f"{dtype} has no dtype in the IR")
    return DTYPE_OF[dtype]


# ---- everything else -----------------------------------------------------------------------------


def opaque(
    target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], types: Sequence[TensorType]
) -> tuple[Value, ...]:
    """The call kept as it is, for backends that can call torch."""
    if target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
        target = torch.ops.aten.reshape.default  # types have no strides, so views may need a copy
    operands: list[Value] = []
    structure = _structure(target, tuple(args), operands)
    named = tuple((k, _structure(target, v, operands)) for k, v in kwargs.items())
    results = OPS["opaque"](
        *operands, target=str(target), args=structure, kwargs=named, types=tuple(types),
        key=0 if is_pure(target) else fresh_key(),
    )  # fmt: skip
    return (results,) if isinstance(results, Value) else tuple(results)


def is_pure(target: Any) -> bool:
    """Whether two equal calls are one: no randomness, no mutation, no other effect."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    seeded = torch.Tag.nondeterministic_seeded in target.tags
    return not (seeded or target._schema.is_mutable or target in torch.fx.node._side_effectful_functions)


def _structure(target: Any, item: Any, operands: list[Value]) -> Any:
    """`item` as an attribute value: operands as slots, torch's own objects by name."""
    if isinstance(item, Value):
        operands.append(item)
        return Slot(len(operands) - 1)
    if isinstance(item, (list, tuple)):
        return tuple(_structure(target, part, operands) for part in item)
    if isinstance(item, torch.dtype):
        return dtype_of(item)
    if isinstance(item, (torch.device, torch.layout, torch.memory_format, complex)):
        return str(item)
    if item is None or isinstance(item, (bool, int, float, str, Poly)):
        return item
    raise CaptureError(f"{target} takes a {type(item).__name__}, which the IR cannot hold: {item!r}")


from .adapters import ADAPTERS  # noqa: E402  (adapters use what is above)

SUPPORTED = supported()
"""Names of the overloads that import into the vocabulary, as torch prints them without `aten.`."""
