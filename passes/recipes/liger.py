"""Liger: a window and gated linear attention whose gate is the key itself, nothing new to learn."""

from __future__ import annotations

from ...ir.ops.activation import as_dtype, wide
from ...ir.ops.linear_attention import linear_attention
from ...ir.ops.nonlinear import log_sigmoid
from . import features
from .pieces import normalised, windowed
from .pieces.gates import repeated
from .recipe import recipe


@recipe(paper="arXiv:2503.01496", kind="needs training", masks={"causal", "causal+padding"})
def liger(q, k, v, site, *, size: int = 64, share: float = 0.5, temperature: float = 16.0):
    """Liger-GLA: share x exact softmax of the last `size` keys + (1 - share) x gated linear attention.

    The latter takes softmax(q), softmax(k) over features, and the log decay logsigmoid(k) / temperature of
    each key feature, k as it is. In the paper the keys of that branch carry no rotary positions; here
    they are the keys that the attention is given.
    """
    near = windowed(q, k, v, size=size, scale=site.scale, causal=True, kind="sliding", padding=site.padding)
    k, v = site.kept(wide(k)), site.kept(wide(v))
    decay = site.kept(repeated(log_sigmoid(k) / temperature, q.shape[1]))
    phi_k = site.kept(features.softmax(k))
    far = linear_attention(features.softmax(wide(q)), phi_k, v, decay, causal=True, normalize=False)
    return as_dtype(normalised(near) * share + far * (1.0 - share), q.dtype)
