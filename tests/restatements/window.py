"""Exact softmax near by, the rest as one key by its cumulants."""

import numpy as np

from . import Site, restates


def row(q, k, v, seen, i, *, size: int, variance: bool) -> np.ndarray:
    """What query i, scaled, makes of the keys it sees, at places `seen`: the far ones as one."""
    near = np.abs(seen // size - i // size) <= 1
    weights, values = list(np.exp(k[near] @ q)), list(v[near])
    if not near.all():
        kt, vt = k[~near], v[~near]
        dk, dv = kt - kt.mean(0), vt - vt.mean(0)
        level = kt.mean(0) @ q + (0.5 * np.mean((dk @ q) ** 2) if variance else 0)
        weights.append(len(kt) * np.exp(level))
        values.append(vt.mean(0) + (dv.T @ dk / len(kt)) @ q)
    if not weights:
        return np.zeros(v.shape[1])
    return np.asarray(weights) @ np.asarray(values) / sum(weights)


def window(site: Site, variance: bool = False, size: int = 8) -> np.ndarray:
    """Token by token: the own and the neighbouring blocks exactly, the others by mean and covariance."""
    out = np.zeros((*site.q.shape[:3], site.v.shape[3]))
    for b, h, i in np.ndindex(*site.q.shape[:3]):
        seen = np.flatnonzero(np.broadcast_to(site.seen, (len(site.q), 1, *site.seen.shape[2:]))[b, 0, i])
        q, k, v = site.q[b, h, i] * site.scale, site.k[b, h, seen], site.v[b, h, seen]
        out[b, h, i] = row(q, k, v, seen, i, size=size, variance=variance)
    return out


restates("window(size=8)")(window)
restates("window(size=8,variance=true)", options={"variance": True})(window)
