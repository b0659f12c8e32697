"""Linear attention and its kin as the torch custom op ``subquad::linear_attention``.

One recurrence, S_t = exp(g_t) S_{t-1} + k_t v_t^T and o_t = S_t^T q_t, is linear attention
(Katharopoulos et al. 2020, arXiv:2006.16236), retention, gated linear attention, the state-space dual
of Mamba and, with values corrected by what the state holds already, the delta rule.

It is computed in chunks: inside one as a small masked product, across chunks through S. Nothing of
size [n, n] is made, forward or backward, and the forward pass keeps no states: the backward walks again.

    blocks      which tokens are taken at once, and how they lie in memory
    decay       what is left of a token at a later one: shared by the features of a head, or of each
    recurrence  the chunks first to last, the gradients last to first, with the delta rule or not
    kernels     one direction or both, the normaliser, one token; forward and backward
    ops, check  what torch is told: schema, refusals, gradients, vmap, FLOPs
"""

from .check import segments_of
from .kernels import CHUNK, SMALL_CHUNK
from .ops import linear_attention, linear_attention_backward, linear_attention_final

__all__ = [
    "CHUNK", "SMALL_CHUNK", "linear_attention", "linear_attention_backward", "linear_attention_final",
    "segments_of",
]  # fmt: skip
