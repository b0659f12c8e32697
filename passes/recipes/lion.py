"""LION: the tokens of a grid sorted by windows, cut into groups of one size, a linear RNN over each."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from ...ir import OPS, RecipeError, Value
from ...ir.dims import Dim
from ...ir.ops.activation import as_dtype, silu, wide
from ...ir.ops.elementwise import eq, remainder
from ...ir.ops.index import index_select
from ...ir.ops.norm import layer_norm
from ...ir.ops.shape import expand, flip, permute, reshape, slice_
from ...ir.types import f32, i64
from .ehrmamba import width
from .pieces import blocks, tokens
from .pieces.gates import filled, flat, from_tokens, gated, heads_of, normed
from .pieces.order import joined_to, split
from .pieces.selective import LEARNS as SCAN
from .pieces.selective import convolved, selective
from .pieces.tiles import coordinates, exact_first, sizes
from .recipe import Mixing, recipe
from .retnet import retention
from .rwkv6 import LEARNS, from_before, log_decays, of_itself


class Groups(NamedTuple):
    """How the n tokens of a grid are grouped: their order, its inverse, the tokens of a group.

    place: the site within groups, whose padding is what is missing in the last one.
    """

    order: Value
    back: Value
    size: int
    place: Mixing

    def taken(self, x: Value) -> Value:
        """x [b, h, before + n, d] as [b * groups, h, size, d], without the tokens before the grid."""
        _, x = split(x, self.place.before)
        y = blocks(index_select(x, self.order, dim=2), self.size)
        b, h, c, size, d = y.shape
        return reshape(permute(y, dims=(0, 2, 1, 3, 4)), shape=(b * c, h, size, d))

    def given(self, x: Value, b: Dim) -> Value:
        """The inverse, [b, h, n, d]."""
        (many, h, size, d), (n,) = x.shape, self.order.shape
        y = permute(reshape(x, shape=(b, many // b, h, size, d)), dims=(0, 2, 1, 3, 4))
        return index_select(tokens(y, n), self.back, dim=2)


def grouped(site: Mixing, b: Dim, window: int, group: int) -> Groups:
    """Tokens by windows of `window` a side, then by place in the window, in groups of `group` at most.

    The last axis of the grid counts first in even layers, the one before it in odd ones; in every
    second pair of layers the windows begin half a window earlier.
    """
    if window < 1 or group < 1:
        raise RecipeError(f"window={window}, group={group}: 1 at least")
    grid = sizes(site)
    axes = list(range(len(grid)))[::-1]
    if site.index % 2 and len(axes) > 1:
        axes[:2] = axes[1::-1]
    shift = window // 2 if site.index // 2 % 2 else 0
    key, places = OPS["const"](value=0, dtype=i64), [c + shift for c in coordinates(grid)]
    for a in axes:
        key = key * ((grid[a] - 1 + shift) // window + 1) + OPS["div"](
            places[a], window, rounding_mode="floor"
        )
    for a in axes:
        key = key * window + remainder(places[a], window)
    _, order = OPS["sort"](key, stable=True, dim=0)
    _, back = OPS["sort"](order, stable=True, dim=0)
    n, padding = math.prod(grid), None
    size = min(group, n)
    found = Groups(order, back, size, dataclasses.replace(site, grid=(), before=0, padding=None))
    if n % size:
        one = expand(OPS["const"](value=1.0, dtype=f32), size=(b, 1, n, 1))
        kept = eq(found.taken(one), 1.0)
        padding = reshape(kept, shape=(kept.shape[0], 1, 1, size))
    return found._replace(place=dataclasses.replace(found.place, before=site.before, padding=padding))


def _with_first(q: Value, k: Value, v: Value, site: Mixing, out: Value) -> Value:
    """What the grid gets, after what the tokens before it get: exact attention to all."""
    first = exact_first(q, k, v, site)
    return as_dtype(out if first is None else joined_to(as_dtype(first, out.dtype), out), q.dtype)


@recipe(
    paper="arXiv:2407.18232", kind="needs training", masks={"none"}, square=True, needs={"grid", "tokens"},
    learns={
        "in": "N(0, 1 / channels)", "out": "N(0, 1 / (expand channels))", "norm": "1", "norm_bias": "0",
        **{f"{way}_{name}": start for way in ("there", "back") for name, start in
           {"conv": "the identity", **SCAN}.items()},
    },
)  # fmt: skip
def lion(
    q, k, v, site, *, window: int = 13, group: int = 256, state: int = 16, expand: int = 2, conv: int = 4
):
    """LION with Mamba: norm(W_out (forward + backward scan of u) silu(z)), [u, z] = x W, in each group.

    Queries, keys and values are read for class tokens only, which attend to all exactly. A layer of
    the paper runs along one axis and then the other; here even layers take one and odd ones the other.
    """
    (b, h, _, _), e, x = q.shape, v.shape[3], site.tokens
    c = width(x.shape[2])
    inner, groups = expand * c, grouped(site, b, window, group)
    both = from_tokens(site, x, "in", 2 * inner, random=True)
    u, z = (slice_(both, dim=2, start=start, end=start + inner) for start in (0, inner))
    u, place = groups.taken(heads_of(u, 1)), groups.place
    there = _mamba(place, u, state, -(-c // 16), conv, "there_")
    if place.padding is not None:
        place = dataclasses.replace(place, padding=flip(place.padding, dims=(3,)))
    back = flip(_mamba(place, flip(u, dims=(2,)), state, -(-c // 16), conv, "back_"), dims=(2,))
    y = flat(groups.given(there + back, b)) * silu(flat(split(heads_of(z, 1), site.before)[1]))
    y = from_tokens(site, y, "out", h * e, random=True)
    norm = (site.learn(name, filled(v, y.dtype, h * e)) for name, v in (("norm", 1.0), ("norm_bias", 0.0)))
    return _with_first(q, k, v, site, heads_of(layer_norm(y, *norm, normalized_shape=(h * e,)), h))


def _mamba(site: Mixing, u: Value, state: int, rank: int, conv: int, name: str) -> Value:
    y = convolved(site, flat(u), f"{name}conv", conv)
    return heads_of(selective(site, y, state=state, rank=rank, name=name), 1)


@recipe(
    paper="arXiv:2407.18232", kind="needs training", masks={"none"}, square=True, needs={"grid", "tokens"},
    learns={"gate": "0", "gate_bias": "open: silu of it is 1"},
)  # fmt: skip
def lion_retnet(q, k, v, site, *, window: int = 13, group: int = 256):
    """LION with retention: `retnet` both ways within each group, distance counted along the sorted tokens.

    Class tokens attend to all tokens exactly.
    """
    groups = grouped(site, q.shape[0], window, group)
    x, y, z = (groups.taken(t) for t in (q, k, v))
    o = groups.given(retention(x, y, z, groups.place), q.shape[0])
    return _with_first(q, k, v, site, gated(site, o, _on_grid(site)))


@recipe(
    paper="arXiv:2407.18232", kind="needs training", masks={"none"}, square=True, needs={"grid", "tokens"},
    learns=LEARNS,
)  # fmt: skip
def lion_rwkv(q, k, v, site, *, window: int = 13, group: int = 256, rank: int = 64, half_life: float = 32.0):
    """LION with RWKV-6: o_t = scale q_t^T (S_(t-1) + diag(bonus) k_t v_t^T + what is the same from the end).

    S_t = diag(exp(-exp(w_t))) S_(t-1) + k_t v_t^T, w = W2 tanh(W1 x) + bias of each key feature
    (arXiv:2404.05892). Each head is then normalised, and times silu(W x + b). Class tokens attend to all
    tokens exactly.
    """
    (b, h, _, d), groups = q.shape, grouped(site, q.shape[0], window, group)
    decay = log_decays(site, h, d, rank, half_life)
    x, y, z, decay = (groups.taken(t) for t in (wide(q) * site.scale, wide(k), wide(v), decay))
    decay = groups.place.kept(decay)
    o = from_before(x, y, z, decay) + from_before(x, y, z, decay, back=True) + of_itself(site, x, y, z)
    o = groups.given(normed(site, o), b)
    return _with_first(q, k, v, site, gated(site, o, _on_grid(site)))


def _on_grid(site: Mixing) -> Value:
    """The tokens of the grid, [b, n, c]."""
    assert site.tokens is not None
    return flat(split(heads_of(site.tokens, 1), site.before)[1])
