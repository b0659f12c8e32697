"""ViG, arXiv:2405.18425."""

import numpy as np

from . import Site, restates
from .steps import apart, backwards, recurrence, rms, sigmoid


def conv3x3(x: np.ndarray, w: np.ndarray, grid: tuple[int, int], before: int) -> np.ndarray:
    """Depthwise over the grid of x [b,n,c], zeros around it; the tokens before the grid stay."""
    (rows, columns), out = grid, x.copy()
    for r, c in np.ndindex(rows, columns):
        out[:, before + r * columns + c] = sum(
            w[:, i, j] * x[:, before + (r + i - 1) * columns + c + j - 1]
            for i, j in np.ndindex(3, 3)
            if 0 <= r + i - 1 < rows and 0 <= c + j - 1 < columns
        )
    return out


@restates("vig", lengths=())
def vig(site: Site) -> np.ndarray:
    """Two recurrences, the current token counted in both."""
    h, w = site.q.shape[1], site.weights
    u = conv3x3(site.tokens, w["conv"], site.grid, site.before)
    decay = sigmoid(u @ w["decay_down"].T @ w["decay_up"].T + w["decay_bias"]) ** (1 / 16)
    there, back = (apart(part, h) for part in np.split(decay, 2, axis=-1))
    forward = recurrence(site.q, site.k, site.v, there, site.keep)
    (backward,) = backwards(recurrence(*backwards(site.q, site.k, site.v, back, site.keep)))
    o = rms(site.scale * (forward + backward) / 2, 1e-6) * w["norm"]
    heads = np.repeat(np.arange(2), h // 2)  # two heads of values, repeated
    kernels = w["local"].reshape(2, -1, 3, 3)[heads]
    near = np.stack([conv3x3(site.v[:, j], kernels[j], site.grid, site.before) for j in range(h)], axis=1)
    g = apart(sigmoid(u @ w["mix"].T + w["mix_bias"]), h)
    return o * g + rms(near, 1e-6) * w["local_norm"] * (1 - g)
