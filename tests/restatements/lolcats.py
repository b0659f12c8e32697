"""LoLCATs, arXiv:2410.10254."""

import numpy as np

from . import Site, restates


def phi(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """[softmax(x w), softmax(-x w)] of one token."""
    halves = [np.exp(y - y.max()) for y in (x @ w, -(x @ w))]
    return np.maximum(np.concatenate([y / y.sum() for y in halves]), 1e-12)


def lolcats(site: Site, kind: str = "sliding", affine: bool = False, size: int = 8) -> np.ndarray:
    """Query by query and key by key: exponentials near by, features of the rest."""
    out = np.zeros((*site.q.shape[:3], site.v.shape[3]))
    n, seen = site.q.shape[2], np.broadcast_to(site.seen, (len(site.q), 1, *site.seen.shape[2:]))
    for b, h, i in np.ndindex(len(site.q), site.q.shape[1], n):
        gate = 1 / (1 + np.exp(-site.weights["mix"][h, 0, 0]))
        if kind == "sliding":
            near = [j for j in range(n) if seen[b, 0, i, j] and abs(i - j) < size]
        else:
            near = [j for j in range(n) if seen[b, 0, i, j] and abs(i // size - j // size) <= 1]
        rest = [j for j in range(n) if seen[b, 0, i, j] and j not in near]
        scores = {j: site.scale * site.q[b, h, i] @ site.k[b, h, j] for j in near}
        top = max(scores.values(), default=0)
        weights = {j: gate * np.exp(s - top) for j, s in scores.items()}
        query = phi(site.q[b, h, i], site.weights["query"][h])
        for j in rest:
            weights[j] = query @ phi(site.k[b, h, j], site.weights["key"][h]) * (1 - gate if affine else 1)
        if weights:
            out[b, h, i] = sum(w * site.v[b, h, j] for j, w in weights.items()) / sum(weights.values())
    return out


restates("lolcats(size=8)", lengths=(1, 9, 20))(lolcats)
restates("lolcats(size=4,kind=terraced,affine=true,width=3)", lengths=(1, 9, 14),
         options={"kind": "terraced", "affine": True, "size": 4})(lolcats)  # fmt: skip
