"""ZeroI2V's dual-headed attention, arXiv:2310.01324."""

import numpy as np

from . import Site, restates


def softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def zeroi2v(site: Site, shift_div: int = 2, long: bool = False) -> np.ndarray:
    """Frame by frame and channel by channel: two query heads to a key head, channels of key heads moved."""
    count, n, before = site.grid[0], int(np.prod(site.grid[1:])), site.before
    out = np.zeros((*site.q.shape[:3], site.v.shape[3]))
    steps = {0: -1, 1: 1, 2: -2 if long else 0}
    for b, h in np.ndindex(*out.shape[:2]):
        q, k, v = site.q[b, h], site.k[b, h], site.v[b, h]
        out[b, h, :before] = softmax(site.scale * q[:before] @ k.T) @ v
        for t in range(count):
            mine = slice(before + t * n, before + t * n + n)
            near = []
            for x in (k, v):
                width = x.shape[1]
                heads = site.q.shape[1] // 2
                part = heads * width // shift_div
                columns = []
                for c in range(width):
                    at = t + steps.get((h // 2 * width + c) // part, 0)
                    at = at if 0 <= at < count else t
                    columns.append(x[before + at * n : before + at * n + n, c])
                near.append(np.concatenate([x[:before], np.stack(columns, 1)]))
            out[b, h, mine] = softmax(site.scale * q[mine] @ near[0].T) @ near[1]
    return out


GRIDS = ((2, 1, 1), (2, 2, 3), (4, 2, 2))
restates("zeroi2v", grids=GRIDS, linear=False)(zeroi2v)
restates(
    "zeroi2v(shift_div=4,long=true)", grids=GRIDS[2:], linear=False, options={"shift_div": 4, "long": True}
)(zeroi2v)
