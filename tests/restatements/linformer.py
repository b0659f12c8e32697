"""Linformer, arXiv:2006.04768."""

import numpy as np

from . import Site, restates


def linformer(site: Site) -> np.ndarray:
    """Head by head; repeated query heads have the matrices of their key head."""
    w, out = site.weights, np.zeros((*site.q.shape[:3], site.v.shape[3]))
    n, heads = site.k.shape[2], site.q.shape[1]
    for b, h in np.ndindex(len(out), heads):
        keep = site.keep[b]
        e, f = (w[name][h * len(w[name]) // heads][:, :n][:, keep] for name in "EF")
        scores = site.scale * site.q[b, h] @ (e @ site.k[b, h, keep]).T
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[b, h] = weights @ (f @ site.v[b, h, keep]) / weights.sum(-1, keepdims=True)
    return out


restates("linformer(size=4,length=40)")(linformer)
restates("linformer(size=4,length=40,shared=true)")(linformer)
