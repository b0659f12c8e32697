"""Integers that are a start and a slope along each axis."""

from __future__ import annotations

from ...ir import Dim, Value
from .element import Reader, aligned
from .terms import Axis, Sum, one

Axes = tuple[int | None, ...]
"""For each axis of a value, the axis it runs along; None for size 1."""


def affine(x: Value, axes: Axes) -> tuple[Dim, dict[int, int]] | None:
    """`start` and slopes by axis when x = start + sum of slope * index, over integers."""
    at = tuple(one(Axis(-1 if a is None else a, size)) for a, size in zip(axes, x.shape, strict=True))
    found = Reader().read(x, aligned(x, at))
    linear = found.linear() if isinstance(found, Sum) else None
    if not isinstance(found, Sum) or linear is None:
        return None
    slopes = {a.place: c for a, c in linear.items() if isinstance(a, Axis) and isinstance(c, int)}
    return (found.start, slopes) if len(slopes) == len(linear) else None
