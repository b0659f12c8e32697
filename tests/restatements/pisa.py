"""Piecewise sparse attention, arXiv:2602.01077."""

import numpy as np

from . import Site, restates

SIZE, COUNT = 8, 2


def pisa(site: Site, order: int = 1) -> np.ndarray:
    """Query by query; two query heads share a key head and choose together."""
    n, (_, heads, _, d), e = site.k.shape[2], site.q.shape, site.v.shape[3]
    out = np.zeros((len(site.q), heads, n, e))
    for b, h, i in np.ndindex(len(site.q), heads, n):
        k, v, keep, block = site.k[b, h], site.v[b, h], site.keep[b], i // SIZE
        blocks = {}
        for j in range(-(-n // SIZE)):
            held = [t for t in range(j * SIZE, min(j * SIZE + SIZE, n)) if keep[t]]
            if held and (j < block or not site.causal):
                blocks[j] = held
        asked = [t for t in range(block * SIZE, min(block * SIZE + SIZE, n)) if keep[t]]
        asked = asked[:1] if site.causal else asked  # a later query has no say in what this one sees
        mean_q = site.q[b, h - h % 2 : h - h % 2 + 2, asked].sum((0, 1))
        best = sorted(blocks, key=lambda j: -mean_q @ k[blocks[j]].mean(0))[:COUNT]
        exact = [t for j in best for t in blocks[j]]
        exact += [t for t in range(block * SIZE, i + 1) if keep[t]] if site.causal else []
        q = site.scale * site.q[b, h, i]
        weights = np.exp(k[exact] @ q)
        acc, total, lean = weights @ v[exact] if exact else np.zeros(e), weights.sum(), np.zeros((d, e))
        far = 0.0
        for j, held in blocks.items():
            mean = k[held].mean(0)
            lean = lean + (k[held] - mean).T @ v[held]
            if j not in best:
                a = np.exp(q @ mean)
                acc, total, far = acc + a * v[held].sum(0), total + a * len(held), far + a * len(held)
        if order and far:
            acc = acc + (q @ lean) * far / sum(map(len, blocks.values()))
        out[b, h, i] = acc / total if total else 0.0
    return out


restates("pisa(size=8,count=2)", linear=False)(pisa)
restates("pisa(size=8,count=2,order=0)", linear=False, options={"order": 0}, lengths=(3, 33))(pisa)
