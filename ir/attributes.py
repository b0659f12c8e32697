"""Attribute kinds: what an op's keyword may be, and the one form each value is stored in.

Kinds normalise at construction, so a rule never sees `dim=-1` and `dim=3` as different things.
Values are int, float, bool, str, None, DType, TensorType, Dim, `Slot`, Graph, or tuples of those:
all print, parse, hash, and compare by `attr_key`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from .dims import Dim, Poly
from .errors import IRError
from .types import DType, TensorType

if TYPE_CHECKING:
    from .core import Value

REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of operand `index` inside the argument structure of an `opaque` op; prints `$0`."""

    index: int

    def __str__(self) -> str:
        return f"${self.index}"


@dataclass(frozen=True, slots=True)
class Attr:
    """A keyword of an op: its kind's name, its normaliser, and a default (`REQUIRED` for none)."""

    name: str
    kind: str
    convert: Callable[[Any, Sequence[Any]], Any]
    default: Any = REQUIRED
    optional: bool = False

    def normalise(self, value: Any, inputs: Sequence[Value | None]) -> Any:
        """`value` in stored form. Raises IRError when it is not of the kind."""
        if value is REQUIRED:
            raise IRError(f"attribute {self.name!r} is missing")
        if value is None and self.optional:
            return None
        try:
            return self.convert(value, inputs)
        except (TypeError, ValueError) as error:
            if isinstance(error, IRError):
                raise IRError(f"attribute {self.name}={value!r}: {error}") from error
            raise IRError(f"attribute {self.name}={value!r} is not {_a(self.kind)}") from error


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _axis(value: Any, inputs: Sequence[Any]) -> int:
    axis, rank = operator.index(value), inputs[0].rank
    if isinstance(value, bool) or not -max(rank, 1) <= axis < max(rank, 1):
        raise IRError(f"axis out of range for rank {rank}")
    return axis % rank if rank else 0


def _axes(value: Any, inputs: Sequence[Any]) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else value
    axes = tuple(sorted(_axis(axis, inputs) for axis in values))
    if not inputs[0].rank:
        return ()  # torch lets a 0-d tensor have axis 0; all its axes are none
    if len(set(axes)) < len(axes):
        raise IRError("an axis appears twice")
    return axes


def _order(value: Any, inputs: Sequence[Any]) -> tuple[int, ...]:
    order = tuple(_axis(axis, inputs) for axis in value)
    if sorted(order) != list(range(inputs[0].rank)):
        raise IRError(f"not an order of the {inputs[0].rank} axes")
    return order


def _dim(value: Any, _: Sequence[Any] = ()) -> Dim:
    if isinstance(value, Poly):
        return value
    if isinstance(value, bool):
        raise IRError("a bool is no dimension")
    return operator.index(value)


def _shape(value: Any, _: Sequence[Any]) -> tuple[Dim, ...]:
    return tuple(_dim(dim) for dim in value)


def _int(value: Any, _: Sequence[Any]) -> int:
    if isinstance(value, bool):
        raise IRError("a bool is no int")
    return operator.index(value)


def _ints(value: Any, inputs: Sequence[Any]) -> tuple[int, ...]:
    return tuple(_int(item, inputs) for item in value)


def _float(value: Any, _: Sequence[Any]) -> float:
    if isinstance(value, str):
        raise IRError("a str is no float")
    return float(value)


def _bool(value: Any, _: Sequence[Any]) -> bool:
    if not isinstance(value, (bool, int)) or value not in (0, 1):
        raise IRError("neither True nor False")
    return bool(value)


def _instance(kind: type) -> Callable[[Any, Sequence[Any]], Any]:
    def convert(value: Any, _: Sequence[Any]) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return convert


def _number(value: Any, _: Sequence[Any]) -> bool | int | float:
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value)  # numpy's float64 is a float, and prints otherwise
    raise TypeError


def _any(value: Any, inputs: Sequence[Any]) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_any(item, inputs) for item in value)
    _key(value)  # raises for what is no attribute value
    return value


CONVERTERS: dict[str, Callable[[Any, Sequence[Any]], Any]] = {
    "axis": _axis, "axes": _axes, "order": _order, "dim": _dim, "shape": _shape, "int": _int,
    "ints": _ints, "float": _float, "bool": _bool, "str": _instance(str), "number": _number,
    "dtype": _instance(DType), "any": _any,
}  # fmt: skip

# Annotations for declarations: static types for the reader, a kind for `@op`.
Axis = Annotated[int, "axis"]
"""One axis of the first operand, stored non-negative."""
Axes = Annotated[tuple[int, ...], "axes"]
"""A set of axes of the first operand, stored sorted."""
Order = Annotated[tuple[int, ...], "order"]
"""A permutation of the first operand's axes."""
Size = Annotated[Dim, "dim"]
"""One dimension."""
Shape = Annotated[tuple[Dim, ...], "shape"]
"""Dimensions."""
Ints = Annotated[tuple[int, ...], "ints"]
"""Plain integers, order kept."""
Number = Annotated[float, "number"]
"""A Python bool, int or float, kept as it is."""
Anything = Annotated[Any, "any"]
"""Any attribute value, nested in tuples."""


def attr_key(attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    """A hashable key that tells 1, 1.0 and True apart, and 0.0 from -0.0; NaN equals NaN."""
    return tuple(map(_key, attrs.values()))


def _key(value: Any) -> Any:
    kind = type(value)
    if kind is float:
        return (float, repr(value))  # no attribute value is a class, so the tag is unmistakable
    if kind is tuple:
        return tuple(map(_key, value))
    if kind is bool:
        return (bool, value)
    if kind in (int, str, Poly, Slot, DType, TensorType, type(None)):
        return value
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    if hasattr(value, "digest"):  # a Graph
        return (kind, value.digest())
    raise IRError(f"a {kind.__name__} cannot be an attribute value")
