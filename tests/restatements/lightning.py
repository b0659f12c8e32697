"""Lightning attention, arXiv:2307.14995 and arXiv:2401.04658."""

import numpy as np

from . import Site, restates
from .steps import apart, merged, recurrence, rms, sigmoid, silu


def alibi(h: int) -> list[float]:
    """ALiBi's slopes, as its paper has them."""
    if h & (h - 1) == 0:
        return [2 ** (-8 * (i + 1) / h) for i in range(h)]
    below = 2 ** int(np.log2(h))
    return alibi(below) + alibi(2 * below)[::2][: h - below]


def lightning(site: Site, rule: str = "alibi") -> np.ndarray:
    """Token by token; no softmax, no scale."""
    (_, h, n, _), v = site.q.shape, silu(site.v) * site.keep[:, None, :, None]
    slopes = {
        "alibi": np.array(alibi(h)) * (1 - site.index / (site.count - 1) + 1e-5),
        "paper": 8 * np.arange(h) / h * (1 - site.index / site.count),
        "given": np.array([0.5]),
    }[rule]
    factor = np.broadcast_to(np.exp(-slopes)[:, None, None], (len(v), h, n, 1))
    o = rms(merged(recurrence(silu(site.q), silu(site.k), v, factor, site.keep)), 1e-6)
    w = site.weights
    return apart(o * sigmoid(site.tokens @ w["gate_down"].T @ w["gate_up"].T), h)


restates("lightning")(lightning)
restates("lightning(rule=paper)", options={"rule": "paper"}, sizes={"h": 6}, lengths=(9,))(lightning)
restates("lightning(slopes=0.5)", options={"rule": "given"}, sizes={"h": 1, "g": 1}, lengths=(9,))(lightning)
