"""WERSA, arXiv:2507.08637, with a coefficient's gain that of the first token it covers."""

import math

import numpy as np

from . import Site, restates
from .inline import gelu


def haar(x: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """x [n, d] with its Haar coefficients scaled, by the basis vectors themselves; n fills 2^levels."""
    levels, out = gains.shape[1] - 1, np.zeros_like(x)
    for level in range(1, levels + 1):
        for start in range(0, len(x), 2**level):
            half = 2 ** (level - 1)
            base = np.zeros(len(x))
            base[start : start + half], base[start + half : start + 2 * half] = 1, -1
            out += np.outer(base, base @ x) / 2**level * gains[start, level - 1]
    for start in range(0, len(x), 2**levels):
        base = np.zeros(len(x))
        base[start : start + 2**levels] = 1
        out += np.outer(base, base @ x) / 2**levels * gains[start, levels]
    return out


def wersa(site: Site, levels: int = 2) -> np.ndarray:
    """Sequence by sequence, the convolution token by token."""
    out, w, n = np.zeros((*site.q.shape[:3], site.v.shape[3])), site.weights, site.q.shape[2]
    more = -n % 2**levels
    spread = math.log1p(math.exp(w["bandwidth"][0])) + 0.1
    for b in range(len(out)):
        x = site.tokens[b] * site.keep[b][:, None]
        width, near = w["conv"].shape[2], np.zeros_like(x)
        for t in range(n):
            for i in range(width):
                if 0 <= t - width // 2 + i < n:
                    near[t] += w["conv"][0, :, i] * x[t - width // 2 + i]
        near = np.maximum((near + w["conv_bias"]) @ w["hidden"] + w["hidden_bias"], 0)
        gains = w["level"] / (1 + np.exp(-(near @ w["gain"] + w["gain_bias"])))
        gains = np.pad(gains, ((0, more), (0, 0)))
        for h in range(out.shape[1]):
            features = []
            for y, name in ((site.q, "query_directions"), (site.k, "key_directions")):
                y = gelu(y[b, h] * site.keep[b][:, None])
                y = haar(np.pad(y, ((0, more), (0, 0))), gains)[:n]
                features.append(np.maximum(y / spread @ w[name], 0) / math.sqrt(w[name].shape[1]))
            weights = features[0] @ features[1].T * site.keep[b]
            o = weights @ site.v[b, h] / (weights.sum(-1, keepdims=True) + 1e-6)
            o = (o - o.mean(-1, keepdims=True)) / np.sqrt(o.var(-1, keepdims=True) + 1e-5)
            out[b, h] = o * w["norm"] + w["norm_bias"]
    return out


restates("wersa", lengths=(1, 8, 33))(wersa)
restates("wersa(levels=3,features=8,width=5)", lengths=(3, 8, 21), options={"levels": 3})(wersa)
