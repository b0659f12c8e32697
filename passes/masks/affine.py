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
    slopes = found.slopes() if isinstance(found, Sum) else None
    if not isinstance(found, Sum) or slopes is None:
        return None
    whole = {place: c for place, c in slopes.items() if isinstance(c, int)}
    return (found.start, whole) if len(whole) == len(slopes) else None
