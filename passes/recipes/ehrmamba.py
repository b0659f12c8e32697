"""EHRMamba: the block of Mamba in the place of an attention."""

from __future__ import annotations

from ...ir import RecipeError
from ...ir.dims import Dim
from ...ir.ops.activation import as_dtype, silu
from ...ir.ops.shape import slice_
from .pieces.gates import from_tokens, heads_of
from .pieces.selective import LEARNS, convolved, selective
from .recipe import recipe


def width(c: Dim) -> int:
    """The channels of the tokens. Raises RecipeError where they are not known."""
    if not isinstance(c, int):
        raise RecipeError(f"{c} channels: their number has to be known")
    return c


@recipe(
    paper="arXiv:2405.14567", kind="needs training", masks={"causal", "causal+padding"}, needs={"tokens"},
    learns={
        "in": "N(0, 1 / channels)", "conv": "the identity", "out": "N(0, 1 / (expand channels))", **LEARNS,
    },
)  # fmt: skip
def ehrmamba(q, k, v, site, *, state: int = 16, expand: int = 2, conv: int = 4):
    """Mamba on the tokens x: [u, z] = x W, u = silu(conv(u)), y = scan(u) silu(z), and out of it the values.

    A model swap: queries, keys and values are not read, only the projection after the attention stays.
    Nothing of it is like the attention it replaces before it is trained.
    """
    (_, h, _, _), e, x = q.shape, v.shape[3], site.tokens
    c = width(x.shape[2])
    inner = expand * c
    both = from_tokens(site, x, "in", 2 * inner, random=True)
    u, z = (slice_(both, dim=2, start=start, end=start + inner) for start in (0, inner))
    u = convolved(site, u, "conv", conv)
    y = selective(site, u, state=state, rank=-(-c // 16)) * silu(z)
    return as_dtype(heads_of(from_tokens(site, y, "out", h * e, random=True), h), q.dtype)
