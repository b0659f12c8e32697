"""LinFusion, arXiv:2409.02097."""

import numpy as np

from . import Site, restates, swap


def linfusion(site: Site) -> np.ndarray:
    """Token by token through the network, then dense weights; sums over keys are means."""
    h, weights = site.q.shape[1], site.weights

    def phi(y, of):
        w = {name.removeprefix(f"{of}_"): x for name, x in weights.items() if name.startswith(of)}
        z = site.tokens @ w["down"] + w["down_bias"]
        z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
        z = z * w["norm"] + w["norm_bias"]
        z = np.where(z > 0, z, 0.01 * z)
        up, bias = (w[name].repeat(h // len(w[name]), 0) for name in ("up", "up_bias"))
        y = y + np.einsum("bnm,hmd->bhnd", z, up) + bias
        return np.where(y > 0, y + 1, np.exp(np.minimum(y, 0)))

    seen = phi(site.q, "query") @ swap(phi(site.k, "key")) * site.seen
    mean = seen / site.keep.sum(1)[:, None, None, None]
    return mean @ site.v / (mean.sum(-1, keepdims=True) + 1e-4)


restates("linfusion")(linfusion)
restates("linfusion(width=3)")(linfusion)
