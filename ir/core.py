"""Immutable typed SSA: `OpDef` says what an op means, `Op` is one use of it, `Value` one result.

`build` is the only constructor of ops. It normalises attributes, infers types and, inside a
`building()` block, interns: equal ops on equal operands are one object, so common subexpressions
merge by construction and dead code is what no output reaches.
"""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .attributes import Attr, attr_key
from .dims import Dim
from .errors import IRError
from .types import DType, TensorType, broadcast, promote, scalar_dtype


@dataclass(frozen=True, slots=True)
class Param:
    """An operand slot: dtype kinds it accepts, and whether it may be absent or repeated."""

    name: str
    kinds: str = "buifcx"
    optional: bool = False
    variadic: bool = False


@dataclass(frozen=True, eq=False)
class OpDef:
    """The declaration of an op. Exactly one of `numpy` and `body` gives its meaning.

    aten: overload names, most specific first; the first whose schema fits is the lowering.
    infer: `(types..., **attrs) -> TensorType | tuple[TensorType, ...]`; raises IRError.
    flops: `(types..., **attrs) -> Dim`, or None for one per element of the result. bytes: the same of
    what is read and written, or None for the operands and results once.
    view: only moves or reinterprets elements. random: never interned or folded.
    """

    name: str
    params: tuple[Param, ...]
    attrs: tuple[Attr, ...]
    infer: Callable[..., Any]
    numpy: Callable[..., Any] | None = None
    body: Callable[..., Any] | None = None
    aten: tuple[str, ...] = ()
    triton: str | None = None
    flops: Callable[..., Dim] | None = None
    bytes: Callable[..., Dim] | None = None
    commutative: bool = False
    random: bool = False
    view: bool = False
    doc: str = ""

    def __call__(self, *operands: Any, **attrs: Any) -> Any:
        """Build the op on values (numbers become `const`), or a pattern node inside a rule."""
        for operand in operands:
            if isinstance(operand, Expression) and not isinstance(operand, Value):
                return operand.node(self, operands, attrs)
        results = build(self, lift(self, operands), attrs).results
        return results[0] if len(results) == 1 else results

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    @functools.cached_property
    def arity(self) -> tuple[int, float]:
        """The least and the greatest number of operands."""
        least = sum(not (p.optional or p.variadic) for p in self.params)
        variadic = any(p.variadic for p in self.params)
        return least, math.inf if variadic else len(self.params)

    @functools.cached_property
    def attr_kinds(self) -> dict[str, Attr]:
        """Attributes by name."""
        return {attr.name: attr for attr in self.attrs}


OPS: dict[str, OpDef] = {}
"""Every declared op by name; filled by `@op` and `@composite` as `ir.ops` is imported."""


class Expression:
    """Arithmetic that builds ops; shared by values and by the holes of a rule's pattern."""

    __slots__ = ()

    def node(self, defn: OpDef, operands: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
        """A pattern node (patterns override this; values never reach it)."""
        raise TypeError(f"{type(self).__name__} cannot stand in for an operand of {defn.name}")

    def __add__(self, other: Any) -> Any:
        return OPS["add"](self, other)

    def __radd__(self, other: Any) -> Any:
        return OPS["add"](other, self)

    def __sub__(self, other: Any) -> Any:
        return OPS["sub"](self, other)

    def __rsub__(self, other: Any) -> Any:
        return OPS["sub"](other, self)

    def __mul__(self, other: Any) -> Any:
        return OPS["mul"](self, other)

    def __rmul__(self, other: Any) -> Any:
        return OPS["mul"](other, self)

    def __truediv__(self, other: Any) -> Any:
        return OPS["div"](self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return OPS["div"](other, self)

    def __pow__(self, other: Any) -> Any:
        return OPS["pow"](self, other)

    def __matmul__(self, other: Any) -> Any:
        return OPS["matmul"](self, other)

    def __neg__(self) -> Any:
        return OPS["neg"](self)


class Value(Expression):
    """One result of an op: what rules and recipes see."""

    __slots__ = ("index", "op", "type")
    op: Op
    index: int
    type: TensorType

    def __init__(self, op: Op, index: int, type: TensorType):
        self.op, self.index, self.type = op, index, type

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The dims of the value."""
        return self.type.shape

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.type.dtype

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.type.shape)

    @property
    def number(self) -> bool | int | float | None:
        """The Python number when this is a `const`, else None."""
        return self.op.attrs["value"] if self.op.defn.name == "const" else None

    def __repr__(self) -> str:
        return f"<{self.op.defn.name} : {self.type}>"


class Op:
    """One use of an OpDef. Compared by identity; never changed after `build`.

    source: where in the user's model it comes from, `"layers.3.attn (modeling_llama.py:178)"`.
    via: the rule or pass that made it. Neither takes part in interning, printing or the digest.
    """

    __slots__ = ("_key", "attrs", "defn", "inputs", "results", "source", "types", "via")
    defn: OpDef
    inputs: tuple[Value | None, ...]
    attrs: Mapping[str, Any]
    types: tuple[TensorType, ...]
    results: tuple[Value, ...]
    source: str
    via: str
    _key: tuple[Any, ...] | None

    def __init__(
        self,
        defn: OpDef,
        inputs: tuple[Value | None, ...],
        attrs: dict[str, Any],
        types: tuple[TensorType, ...],
        source: str,
        via: str,
    ):
        self.defn, self.inputs, self.types = defn, inputs, types
        self.attrs = MappingProxyType(attrs)
        self.source, self.via, self._key = source, via, None
        self.results = tuple([Value(self, i, t) for i, t in enumerate(types)])

    @property
    def name(self) -> str:
        """The op's name, `matmul`."""
        return self.defn.name

    @property
    def args(self) -> tuple[Any, ...]:
        """The inputs, for code that knows which are present (typed so that it need not say so)."""
        return self.inputs

    @property
    def operands(self) -> Iterator[Value]:
        """The inputs that are present."""
        return (value for value in self.inputs if value is not None)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal keys mean the same computation. Values hash by identity, so the key pins them."""
        if self._key is None:
            self._key = (self.defn.name, self.inputs, attr_key(self.attrs))
        return self._key

    def __repr__(self) -> str:
        return f"<{describe(self.defn, self.inputs)}>"


@dataclass
class Builder:
    """What `build` needs to know about its surroundings: the interning table and provenance."""

    table: dict[tuple[Any, ...], Op] = field(default_factory=dict)
    source: str = ""
    via: str = ""
    keys: int = 0

    def intern(self, op: Op) -> Op:
        """The op already in the table with the same key, or `op`, now in the table."""
        return op if op.defn.random else self.table.setdefault(op.key, op)


_builder: ContextVar[Builder | None] = ContextVar("subquad_builder", default=None)


@contextmanager
def building() -> Iterator[Builder]:
    """A block in which equal ops are interned and `source`/`via` are stamped on new ops.

    The cycle collector rests meanwhile: what is built is kept, and looking through it again and
    again made building 10,000 ops four times as slow. Blocks in several threads may overlap: the
    one that stopped the collector starts it again.
    """
    builder = Builder()
    token = _builder.set(builder)
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield builder
    finally:
        if collecting:
            gc.enable()
        _builder.reset(token)


def fresh_key() -> int:
    """A number no op of this `building()` block has yet, to tell random or effectful calls apart."""
    builder = _builder.get() or _outside
    builder.keys += 1
    return builder.keys


_outside = Builder()


def build(defn: OpDef, inputs: Sequence[Value | None], attrs: Mapping[str, Any]) -> Op:
    """The one constructor of ops: checks operands, normalises attributes, infers types.

    Raises IRError naming the op, its operand types and the source line; nothing else escapes.
    """
    builder = _builder.get()
    inputs = tuple(inputs)
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    try:
        _check_operands(defn, inputs)
        given = _attributes(defn, inputs, attrs) if attrs or defn.attrs else {}
        types = defn.infer(*[None if v is None else v.type for v in inputs], **given)
        if isinstance(types, TensorType):
            types = (types,)
        elif type(types) is not tuple or not all(isinstance(t, TensorType) for t in types):
            raise IRError(f"types={types!r} are no tensor types")
    except Exception as error:
        where = f"\n    at {builder.source}" if builder and builder.source else ""
        raise IRError(f"{describe(defn, inputs)}: {error}{where}") from error
    if builder is None:
        return Op(defn, inputs, given, types, "", "")
    return builder.intern(Op(defn, inputs, given, types, builder.source, builder.via))


def rebuild(op: Op, inputs: tuple[Value | None, ...]) -> Op:
    """`op` on other inputs, keeping its provenance; `op` itself when nothing changed."""
    if op.inputs == inputs:  # values compare by identity
        return op
    new = build(op.defn, inputs, op.attrs)
    if not new.source and op.source:
        new.source, new.via = op.source, new.via or op.via
    return new


def lift(defn: OpDef, operands: Sequence[Any]) -> list[Value | None]:
    """Operands with Python numbers turned into `const` ops of the dtype torch would give them."""
    if all([isinstance(x, Value) for x in operands]):
        return list(operands)
    dtypes = [x.dtype for x in operands if isinstance(x, Value)]
    const = OPS["const"]
    return [
        const(value=x, dtype=scalar_dtype(x, dtypes)) if isinstance(x, (bool, int, float)) else x
        for x in operands
    ]


def _check_operands(defn: OpDef, inputs: tuple[Value | None, ...]) -> None:
    params, (least, most) = defn.params, defn.arity
    if not least <= len(inputs) <= most:
        names = ", ".join(p.name for p in params)
        raise IRError(f"takes operands ({names}), given {len(inputs)}")
    for i, value in enumerate(inputs):
        param = params[i] if i < len(params) else params[-1]
        if value is None:
            if not param.optional:
                raise IRError(f"operand {param.name!r} is missing")
        elif not isinstance(value, Value):
            raise IRError(f"operand {param.name!r} is a {type(value).__name__}, not a Value")
        elif value.type.dtype.kind not in param.kinds:
            raise IRError(f"operand {param.name!r} cannot be {value.dtype}")


def _attributes(
    defn: OpDef, inputs: Sequence[Value | None], attrs: Mapping[str, Any]
) -> dict[str, Any]:
    unknown = [name for name in attrs if name not in defn.attr_kinds]
    if unknown:
        known = ", ".join(defn.attr_kinds) or "none"
        raise IRError(f"unknown attribute {unknown[0]!r}; it has {known}")
    return {a.name: a.normalise(attrs.get(a.name, a.default), inputs) for a in defn.attrs}


def describe(defn: OpDef, inputs: Iterable[Value | None]) -> str:
    """`matmul(f32[b,h,n,64], f32[b,h,m,64])`, for messages."""
    shown = ("none" if v is None else str(getattr(v, "type", v)) for v in inputs)
    return f"{defn.name}({', '.join(shown)})"


def elementwise(*types: TensorType, dtype: DType | None = None) -> TensorType:
    """The type rule of broadcasting ops: common shape, promoted dtype (or `dtype`)."""
    return TensorType(dtype or promote(*types), broadcast(*[t.shape for t in types]))
