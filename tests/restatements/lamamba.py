"""LaMamba-Diff, arXiv:2408.02615."""

import itertools

import numpy as np

from . import Site, restates
from .ehrmamba import selective
from .steps import apart, merged, silu
from .vig import conv3x3


def tiles(site: Site, window, shifted: bool, grid, bias=None) -> np.ndarray:
    """Token by token: the softmax over its window, both cut where the grid was turned, and class tokens."""
    window = [min(w, g) for w, g in zip(window, grid, strict=True)]
    shift = [w // 2 if shifted and w < g else 0 for w, g in zip(window, grid, strict=True)]
    cells, before, out = list(itertools.product(*map(range, grid))), site.before, np.zeros_like(site.v)

    def tile(cell):
        """The window of a cell, and on which side of each turned edge it lies."""
        turned = [(c - s) % g for c, s, g in zip(cell, shift, grid, strict=True)]
        sides = tuple(c < s for c, s in zip(cell, shift, strict=True))
        return tuple(c // w for c, w in zip(turned, window, strict=True)), sides

    def relative(a, b):
        """Where in the table the bias of query cell a and key cell b stands."""
        index = 0
        for x, y, s, g, w in zip(a, b, shift, grid, window, strict=True):
            index = index * (2 * w - 1) + (x - s) % g - (y - s) % g + w - 1
        return index

    for i in range(site.q.shape[2]):
        scores = site.scale * np.einsum("bhd,bhmd->bhm", site.q[:, :, i], site.k)
        seen = np.ones(site.q.shape[2], bool)
        if i >= before:
            own = cells[i - before]
            seen[before:] = [tile(cell) == tile(own) for cell in cells]
            if bias is not None:
                for j in np.flatnonzero(seen[before:]):
                    scores[:, :, before + j] += bias[relative(own, cells[j])]
        weights = np.exp(scores) * seen
        out[:, :, i] = np.einsum("bhm,bhme->bhe", weights, site.v) / weights.sum(-1, keepdims=True)
    return out


def walks(rows: int, columns: int):
    """The four walks, as places of tokens."""
    along = [(r, c) for r in range(rows) for c in (range(columns) if r % 2 == 0 else range(columns)[::-1])]
    up = [(r, c) for c in range(columns) for r in (range(rows)[::-1] if c % 2 == 0 else range(rows))]
    for walk in (along, up):
        places = [r * columns + c for r, c in walk]
        yield places
        yield places[::-1]


@restates("lamamba(window=3,state=2)", lengths=(), sizes={"c": 17, "h": 2})
def lamamba(site: Site) -> np.ndarray:
    """Windows, plus the sum of four selective scans, normalised and gated."""
    w, before = site.weights, site.before
    near = tiles(site, (3, 3), site.index % 2 == 1, site.grid, w["bias"])
    u, z = np.split(site.tokens @ w["in"].T, 2, axis=-1)
    u = silu(conv3x3(u, w["conv"], site.grid, before))[:, before:]
    total, keep = np.zeros_like(u), np.ones(u.shape[:2], bool)
    for i, walk in enumerate(walks(*site.grid)):
        total[:, walk] += selective(u[:, walk], w, keep, state=2, rank=2, name=f"scan{i}_")
    centred = total - total.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w["norm"] + w["norm_bias"]
    far = merged(np.zeros_like(site.v))
    far[:, before:] = (y * silu(z[:, before:])) @ w["out"].T
    return near + apart(far, site.q.shape[1])
