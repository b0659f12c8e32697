"""Exact softmax near by, and a few slots that hold the other keys by learned shares."""

import numpy as np

from . import Site, restates


def row(q, k, v, share, near, level) -> np.ndarray:
    """What query q, scaled, makes of the keys it sees; those not near only through slots."""
    weights, values = list(np.exp(k[near] @ q)), list(v[near])
    if not near.all():
        for a, lift in zip(share[~near].T, level, strict=True):
            number = a.sum()
            mean_k, mean_v = (a @ x[~near] / max(number, 1e-6) for x in (k, v))
            weights.append(max(number, 1e-6) * np.exp(mean_k @ q + lift))
            values.append(mean_v)
    if not weights:
        return np.zeros(v.shape[1])
    return np.asarray(weights) @ np.asarray(values) / sum(weights)


@restates("slots(size=8,count=3)")
def slots(site: Site, size: int = 8) -> np.ndarray:
    """Token by token: near keys one by one, all others by the slots they belong to."""
    out = np.zeros((*site.q.shape[:3], site.v.shape[3]))
    h = site.q.shape[1]
    w, bias = (site.weights[n].repeat(h // len(site.weights[n]), 0) for n in ("key", "key_bias"))
    for b, i, t in np.ndindex(*site.q.shape[:3]):
        seen = np.flatnonzero(np.broadcast_to(site.seen, (len(site.q), 1, *site.seen.shape[2:]))[b, 0, t])
        q, k, v = site.q[b, i, t] * site.scale, site.k[b, i, seen], site.v[b, i, seen]
        share = np.exp(k @ w[i] + bias[i])
        share /= share.sum(-1, keepdims=True)
        near = np.abs(seen // size - t // size) <= 1
        out[b, i, t] = row(q, k, v, share, near, site.weights["level"][i])
    return out
