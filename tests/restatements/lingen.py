"""LinGen's MATE block, arXiv:2412.09856."""

import itertools

import numpy as np

from . import Site, restates
from .lamamba import tiles
from .steps import apart, merged, recurrence, rms, silu, softplus

ORDERS = ("tyx", "txy", "yxt", "xyt")
"""From the slowest axis to the fastest: spatial rows, spatial columns, temporal rows, temporal columns."""


@restates(
    "lingen(window=2,frames=2,pool=2)",
    lengths=(),
    grids=((1, 1), (3, 4), (2, 3, 3), (3, 2, 4)),
)
def lingen(site: Site) -> np.ndarray:
    """Windows, plus two passes of Mamba-2, each after a preview of the whole."""
    w, before, (b, h, _, _) = site.weights, site.before, site.q.shape
    grid = (1,) * (3 - len(site.grid)) + tuple(site.grid)
    near = tiles(site, (2, 2, 2), site.index % 2 == 1, grid)
    cells = list(itertools.product(*map(range, grid)))
    axes = ["tyx".index(a) for a in ORDERS[site.index % 4]]
    walk = sorted(range(len(cells)), key=lambda i: [cells[i][a] for a in axes])
    boxes: dict[tuple[int, ...], list[int]] = {}
    for i, cell in enumerate(cells):
        boxes.setdefault(tuple(c // 2 for c in cell), []).append(i)
    whole = (site.scale * site.q, site.k, site.v, site.tokens[:, None])
    laid = [x[:, :, before:] for x in whole]
    preview = [np.stack([x[:, :, boxes[key]].mean(2) for key in sorted(boxes)], 2) for x in laid]
    total = w["D"][:, None, None] * site.v
    for name, order in (("", walk), ("back_", walk[::-1])):
        q, k, v, x = (np.concatenate([p, y[:, :, order]], 2) for p, y in zip(preview, laid, strict=True))
        dt = apart(softplus(x[:, 0] @ w[f"{name}dt"].T + w[f"{name}dt_bias"]), h)
        factor = np.exp(-dt * np.exp(w[f"{name}A_log"])[:, None, None])
        y = recurrence(q, k, dt * v, factor, np.ones((b, q.shape[2]), bool))[:, :, len(boxes) :]
        total[:, :, [before + i for i in order]] += y
    total[:, :, :before] = 0
    z = silu(site.tokens @ w["gate"].T + w["gate_bias"])
    return near + apart(rms(merged(total) * z) * w["norm"], h)
