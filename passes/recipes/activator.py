"""Activator: a gated unit of each token by itself, in the place of attention."""

from __future__ import annotations

from ...ir import RecipeError
from ...ir.ops.activation import as_dtype, gelu
from ...ir.ops.norm import layer_norm
from .pieces import zeros
from .pieces.gates import filled, from_tokens, heads_of
from .recipe import ALL, recipe


@recipe(
    paper="arXiv:2405.15953", kind="needs training", masks=ALL, square=True, needs={"tokens"},
    learns={
        "proj_1": "N(0, 1 / channels)", "proj_1_bias": "0", "proj_2": "N(0, 1 / channels)",
        "proj_2_bias": "0", "norm": "1", "norm_bias": "0", "proj_3": "0, so that it adds nothing",
        "proj_3_bias": "0",
    },
)  # fmt: skip
def activator(q, k, v, site, *, accept_no_mixing: bool = False, hidden: int = 0):
    """Activator: O = W3 (LN(gelu(W1 x)) * LN(W2 x)) of each token x; both norms are one.

    It mixes no tokens: what a token becomes depends on no other, so it honours every mask and
    replaces no attention in any functional sense. It is refused unless accept_no_mixing=true. hidden:
    the width of the unit, 0 for twice the channels. Nothing of the pretrained q, k and v is used.
    """
    if not accept_no_mixing:
        raise RecipeError(
            "it mixes no tokens, so nothing would pass between them here; where that is meant, as in an "
            "ablation, say accept_no_mixing=true"
        )
    if hidden < 0:
        raise RecipeError(f"hidden={hidden}: a width, or 0 for twice the channels")
    x, h, e = site.tokens, q.shape[1], v.shape[3]
    width = hidden or 2 * x.shape[2]
    one = from_tokens(site, x, "proj_1", width, bias=0.0, random=True)
    two = from_tokens(site, x, "proj_2", width, bias=0.0, random=True)
    norm = site.learn("norm", filled(1.0, one.dtype, width)), site.learn("norm_bias", zeros(one.dtype, width))
    one, two = (layer_norm(y, *norm, normalized_shape=(width,), eps=1e-5) for y in (gelu(one), two))
    return as_dtype(heads_of(from_tokens(site, one * two, "proj_3", h * e, bias=0.0), h), q.dtype)
