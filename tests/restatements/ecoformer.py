"""EcoFormer, arXiv:2209.09004."""

import numpy as np

from . import Site, restates


def ecoformer(site: Site, offset: str = "self", bits: int = 16) -> np.ndarray:
    """Sequence by sequence: distances to the anchors, signs, counts."""
    out = np.zeros((*site.q.shape[:3], site.v.shape[3]))
    w = site.weights
    for b, h in np.ndindex(site.q.shape[:2]):
        keep = site.keep[b]
        if not keep.any():
            continue
        u = site.q[b, h] / np.linalg.norm(site.q[b, h], axis=-1, keepdims=True)
        squares = ((u[:, None] - w["anchors"][h]) ** 2).sum(-1)
        kernel = np.exp(-squares / (2 * squares[keep].mean())) - w["mean"][h]
        c = np.sign(kernel @ w["planes"][h])
        score, v, n = c @ c[keep].T, site.v[b, h], keep.sum()
        extra = v * keep[:, None] if offset == "self" else v[keep].sum(0)
        out[b, h] = (score @ v[keep] + (bits + 1) * extra) / (score.sum(1) + (bits + 1) * n)[:, None]
    return out


restates("ecoformer")(ecoformer)
restates("ecoformer(bits=5,anchors=7,offset=sum)", options={"offset": "sum", "bits": 5})(ecoformer)
