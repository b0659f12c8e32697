"""EfficientViM's hidden-state mixer, arXiv:2411.15241."""

import numpy as np

from . import Site, restates


@restates("hsm_ssd(states=3)")
def hsm_ssd(site: Site) -> np.ndarray:
    """State by state; the convolution place by place."""
    (batch, heads, n, _), e, w = site.q.shape, site.v.shape[3], site.weights
    (rows, columns), before, out = site.grid, site.before, np.zeros((*site.q.shape[:3], site.v.shape[3]))
    for b in range(batch):
        raw = site.tokens[b] @ w["bcdt"].T
        mixed = raw.copy()
        for i, j in np.ndindex(rows, columns):
            mixed[before + i * columns + j] = 0
            for di, dj in np.ndindex(3, 3):
                y, x = i + di - 1, j + dj - 1
                if 0 <= y < rows and 0 <= x < columns:
                    mixed[before + i * columns + j] += w["conv"][:, di, dj] * raw[before + y * columns + x]
        values = np.concatenate(list(site.v[b]), axis=1)  # [n, heads * e]
        for s in range(3):
            share = np.exp(mixed[:, 6 + s] - mixed[:, 6 + s].max())
            state = (share / share.sum() * mixed[:, s]) @ values
            h, z = np.split(w["hz"] @ state, 2)
            state = w["out"] @ (h * z / (1 + np.exp(-z)) + w["D"] * h)
            out[b] += (mixed[:, 3 + s, None] * state).reshape(n, heads, e).transpose(1, 0, 2)
    return out
