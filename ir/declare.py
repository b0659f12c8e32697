"""`@op` and `@composite`: from one Python function to an `OpDef`.

The function's signature is the op's signature: positional parameters are operands, keyword-only
parameters are attributes. A primitive's function is its type rule over `TensorType`s; a composite's
function is its body over `Value`s, and the body is also its type rule, its reference, its default
lowering, its cost and the pattern that recognises it.
"""

from __future__ import annotations

import functools
import inspect
import types as python_types
import typing
from collections.abc import Callable
from typing import Annotated, Any

from .attributes import CONVERTERS, REQUIRED, Attr, attr_key
from .core import OPS, Op, OpDef, Param, Value, elementwise
from .dims import Dim
from .errors import IRError
from .types import DType, TensorType

Float = Annotated[Any, "operand:fc"]
"""An operand of a floating or complex dtype."""
Real = Annotated[Any, "operand:f"]
"""An operand of a real floating dtype."""
Numeric = Annotated[Any, "operand:uifc"]
"""An operand of any dtype but bool."""
Integer = Annotated[Any, "operand:ui"]
"""An operand of an integer dtype."""
Boolean = Annotated[Any, "operand:b"]
"""A bool operand."""
Bits = Annotated[Any, "operand:bui"]
"""A bool or integer operand."""
RealNumeric = Annotated[Any, "operand:uif"]
"""An operand of an integer or real floating dtype."""
Ordered = Annotated[Any, "operand:buif"]
"""An operand of any dtype whose elements have an order: all but complex."""
Arithmetic = Annotated[Any, "operand:buifc"]
"""An operand of any dtype that can be computed with."""
Tensor = Annotated[Any, "operand:buifcx"]
"""An operand of any dtype, to be moved or stored."""

_PLAIN = {int: "int", float: "float", bool: "bool", str: "str", DType: "dtype"}


def op(
    *,
    aten: str | tuple[str, ...] = (),
    numpy: Callable[..., Any] | None = None,
    flops: Callable[..., Dim] | None = None,
    bytes: Callable[..., Dim] | None = None,
    triton: str | None = None,
    commutative: bool = False,
    random: bool = False,
    view: bool = False,
) -> Callable[[Callable[..., Any]], OpDef]:
    """Declare a primitive; the decorated function is its type rule. See `OpDef` for the fields.

    Raises IRError when the name is taken or a parameter has no known kind.
    """

    def declare(rule: Callable[..., Any]) -> OpDef:
        return _declare(
            rule, infer=rule, numpy=numpy, flops=flops, bytes=bytes, triton=triton,
            commutative=commutative, random=random, view=view,
            aten=(aten,) if isinstance(aten, str) else aten,
        )  # fmt: skip

    return declare


def composite(
    body: Callable[..., Any] | None = None,
    *,
    aten: str | tuple[str, ...] = (),
    flops: Callable[..., Dim] | None = None,
    bytes: Callable[..., Dim] | None = None,
    numpy: Callable[..., Any] | None = None,
    infer: Callable[..., Any] | None = None,
) -> Any:
    """Declare an op by its body, a plain function over other ops.

    aten: overloads that compute the same thing in one call. numpy: a second meaning that tests hold
    against the body (the body stays the definition). infer: the type rule, where tracing the body
    would say less. Usable bare or with keywords.
    """

    def declare(body: Callable[..., Any]) -> OpDef:
        return _declare(
            body, infer=infer or _traced_types(body), body=body, flops=flops, bytes=bytes, numpy=numpy,
            aten=(aten,) if isinstance(aten, str) else aten,
        )  # fmt: skip

    return declare if body is None else declare(body)


def moved(*_: Any, **__: Any) -> Dim:
    """The FLOPs of an op that moves elements, or leaves them out, and computes none: 0."""
    return 0


def unary(
    name: str, *, numpy: Callable[..., Any], aten: str | tuple[str, ...], kinds: Any = Float, **flags: Any
) -> OpDef:
    """An elementwise op of one operand that keeps its type."""

    def rule(x: Any) -> TensorType:
        return x

    rule.__annotations__ = {"x": kinds}
    return _named(rule, name, f"{name} of each element.", numpy, aten, flags)


def binary(
    name: str,
    *,
    numpy: Callable[..., Any],
    aten: str | tuple[str, ...],
    kinds: Any = Tensor,
    result: DType | None = None,
    **flags: Any,
) -> OpDef:
    """An elementwise op of two operands with broadcasting; dtype promoted, or `result`."""

    def rule(a: Any, b: Any) -> TensorType:
        return elementwise(a, b, dtype=result)

    rule.__annotations__ = {"a": kinds, "b": kinds}
    return _named(
        rule, name, f"{name} of each pair of elements, with broadcasting.", numpy, aten, flags
    )


def _named(
    rule: Callable[..., Any], name: str, doc: str, numpy: Any, aten: Any, flags: dict[str, Any]
) -> OpDef:
    rule.__name__, rule.__doc__ = name, doc
    return op(aten=aten, numpy=numpy, **flags)(rule)


def _declare(function: Callable[..., Any], **fields: Any) -> OpDef:
    name = function.__name__.rstrip("_")
    if name in OPS:
        raise IRError(f"op {name!r} is declared twice")
    params, attrs = [], []
    hints = typing.get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name, Tensor)
        if parameter.kind is parameter.KEYWORD_ONLY:
            attrs.append(_attr(name, parameter, hint))
        else:
            params.append(_param(parameter, hint))
    doc = inspect.getdoc(function) or ""
    defn = OpDef(name=name, params=tuple(params), attrs=tuple(attrs), doc=doc, **fields)
    OPS[name] = defn
    return defn


def _split_optional(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, python_types.UnionType):
        rest = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        if len(rest) == 1 and len(rest) < len(typing.get_args(hint)):
            return rest[0], True
    return hint, False


def _param(parameter: inspect.Parameter, hint: Any) -> Param:
    hint, optional = _split_optional(hint)
    kinds = "buifcx"
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, str) and note.startswith("operand:"):
            kinds = note.removeprefix("operand:")
    optional = optional or parameter.default is None
    return Param(parameter.name, kinds, optional, parameter.kind is parameter.VAR_POSITIONAL)


def _attr(op_name: str, parameter: inspect.Parameter, hint: Any) -> Attr:
    hint, optional = _split_optional(hint)
    kind = next((n for n in getattr(hint, "__metadata__", ()) if n in CONVERTERS), _PLAIN.get(hint))
    if kind is None:
        raise IRError(f"op {op_name!r}: attribute {parameter.name!r} has no known kind: {hint!r}")
    default = REQUIRED if parameter.default is parameter.empty else parameter.default
    return Attr(parameter.name, kind, CONVERTERS[kind], default, optional)


def _traced_types(body: Callable[..., Any]) -> Callable[..., Any]:
    @functools.lru_cache(maxsize=4096)
    def infer(types: tuple[Any, ...], attrs: tuple[tuple[str, Any], ...], _key: Any) -> Any:
        result = body(*map(placeholder, types), **dict(attrs))
        if isinstance(result, Value):
            return result.type
        return tuple(value.type for value in result)

    def rule(*types: TensorType | None, **attrs: Any) -> Any:
        return infer(types, tuple(attrs.items()), attr_key(attrs))

    return rule


_PLACEHOLDER = OpDef("placeholder", (), (), infer=lambda: None)


def placeholder(type: TensorType | None) -> Value | None:
    """A value of `type` that no graph owns, for tracing a body."""
    return None if type is None else Op(_PLACEHOLDER, (), {}, (type,), "", "").results[0]
