"""A mask operand split into attributes of `attention` and a smaller operand, exactly equal."""

from __future__ import annotations

import math
from typing import Any

from ...ir import Dim, IRError, Value
from ...ir.ops.elementwise import logical_not, where
from .arithmetic import two_valued
from .build import constant, four, held
from .conditions import FALSE, TRUE, every, negated
from .factors import element_of, packed_positions, parts
from .mask import AS_GOOD_AS_INFINITE, Mask, overflows, uniform
from .naming import Band, UnprovedError, limits
from .terms import Apply, Condition, TooLargeError

Split = tuple[Value | None, bool, Dim, Dim | None, str]


def simplify(
    mask: Value, causal: bool = False, offset: Dim = 0, window: Dim | None = None, empty: str = "zero"
) -> Split | None:
    """A mask operand of `attention` and its attributes as (operand, causal, offset, window, empty).

    The result is exactly that of `attention` with the mask, for finite scores below 1e20: what is by
    position moves into the attributes, and what is two-valued becomes bool. A finite minus infinity
    leaves a query whose keys are all masked with equal weights, which is empty="uniform"; that is
    provable for masks at or below -1e30, where adding a score changes nothing, and where no other
    mask is in force. None where nothing changes.
    """
    try:
        found = _masked(mask)
        if found is None:
            return None
        keep, low, rest = found
        if keep == FALSE or (math.isfinite(low) and (causal or window is not None)):
            return None
        attrs, left = _moved(packed_positions(keep), (causal, offset, window))
        if keep != TRUE and left == keep and (mask.dtype.kind == "b" or rest is not None):
            return None
        if left == TRUE:
            operand = rest
        elif rest is None:
            operand = _written(mask, keep) if left == keep else four(held(left))
        else:
            operand = where(held(left), rest, constant(-math.inf, rest.dtype))
    except (TooLargeError, IRError):
        return None
    return operand, *attrs, "uniform" if math.isfinite(low) else empty


def _written(mask: Value, keep: Condition) -> Value:
    """What a two-valued mask keeps: the condition it was made by, where that is at hand."""
    if mask.op.name == "where":
        condition, a, b = mask.op.args
        if condition.shape == mask.shape and uniform(a) is not None and uniform(b) is not None:
            return condition if uniform(a) == 0 else logical_not(condition)
    return four(held(keep))


def _masked(mask: Value) -> tuple[Condition, float, Value | None] | None:
    """(what is kept, what is added elsewhere, what is added where it is kept) of a mask."""
    x: Any = element_of(mask)[0]
    if mask.dtype.kind == "b":
        return x, -math.inf, None
    if not mask.dtype.is_float:
        return None
    while isinstance(x, Apply) and x.name == "cast" and x.dtypes[0].is_float:
        x = x.args[0]
    cases = two_valued(x)
    if cases is not None:
        c, a, b = cases
        c, a, b = (negated(c), b, a) if b == 0 else (c, a, b)
        exact = a == 0 and b <= AS_GOOD_AS_INFINITE and not overflows(b, mask.dtype)
        return (c, b, None) if exact else None
    if mask.op.name != "where":
        return None
    condition, a, b = mask.op.args
    for rest, low, wanted in ((a, b, True), (b, a, False)):
        if uniform(low) == -math.inf and rest.dtype is mask.dtype:
            kept: Any = element_of(condition)[0]
            return kept if wanted else negated(kept), -math.inf, rest
    return None


def _moved(
    keep: Condition, attrs: tuple[bool, Dim, Dim | None]
) -> tuple[tuple[bool, Dim, Dim | None], Condition]:
    """Attributes that also say what of `keep` is by position, and the rest of it."""
    band, left = Band(*limits(*attrs)), []
    ends: list[Dim | None] = [band.least, band.greatest]
    for part in parts(keep):
        if not band.take(part):
            left.append(part)
            continue
        alone = Band()
        alone.take(part)
        ends += [alone.least, alone.greatest]
    known = band.least in ends and band.greatest in ends  # not the unknown one of two
    if not known or len(left) == len(parts(keep)):
        return attrs, keep
    try:
        told = band.told(Mask("dense"))
    except UnprovedError:
        return attrs, keep
    return (told.causal, told.offset, told.window), every(left)
