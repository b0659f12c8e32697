"""Retention: constant decays, one for each head."""

from __future__ import annotations

from ...ir import Value
from ...ir.dims import Dim
from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.elementwise import exp, log1p
from ...ir.ops.norm import rms_norm
from ...ir.ops.shape import expand, reshape
from ...ir.types import DType
from .pieces.gates import gated, places
from .pieces.linear import recurrence
from .recipe import MASKS, Mixing, recipe


def retention_decay(h: Dim, dtype: DType) -> Value:
    """[h], ln(1 - 2^(-5 - i))."""
    return log1p(-exp((places(h, dtype) + 5.0) * -0.6931471805599453))


def constant_decay(site: Mixing, decay: Value, b: Dim, n: Dim) -> Value:
    """Log decay [h], or [b, h, n] with 0 at padded tokens, which then count as no distance."""
    if site.padding is None:
        return decay
    (h,) = decay.shape
    full = expand(reshape(decay, shape=(1, h, 1, 1)), size=(b, h, n, 1))
    return reshape(site.kept(full), shape=(b, h, n))


def retention(q: Value, k: Value, v: Value, site: Mixing) -> Value:
    """Constantly decayed weights scale q . k, each head at unit mean square: [b, h, n, e] in f32 or wider."""
    x, (b, h, n, _) = wide(q) * site.scale, q.shape
    k, v = site.kept(wide(k)), site.kept(wide(v))
    decay = constant_decay(site, retention_decay(h, x.dtype), b, n)
    o = recurrence(site, x, k, v, decay, causal=site.causal)
    return rms_norm(o, normalized_shape=(v.shape[3],), eps=1e-6)


@recipe(
    paper="arXiv:2307.08621", kind="needs training", masks=MASKS, square=True, needs={"tokens"},
    learns={"gate": "0, so that it does not read the tokens", "gate_bias": "open: silu of it is 1"},
)  # fmt: skip
def retnet(q, k, v, site):
    """RetNet: weights scale q_i . k_j g^(i - j) with g = 1 - 2^(-5 - head), no softmax.

    Each head is then set to unit mean square, and times silu(W x). Both ways, where the mask lets a
    query see later keys, the decay counts distance to either side (arXiv:2309.11523).
    """
    return as_dtype(gated(site, retention(q, k, v, site), site.tokens), q.dtype)
