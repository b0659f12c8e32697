"""Simplified linear attention of SLAB, arXiv:2405.11582."""

import numpy as np

from . import Site, restates, swap


def convolved(v: np.ndarray, kernel: np.ndarray, grid: tuple[int, ...], before: int) -> np.ndarray:
    """v [n, e] of one head over the grid with kernel [e, size, size]; tokens before it get 0."""
    out, (rows, columns), reach = np.zeros_like(v), grid, kernel.shape[1] // 2
    for y, x in np.ndindex(rows, columns):
        for i, j in np.ndindex(kernel.shape[1:]):
            yy, xx = y + i - reach, x + j - reach
            if 0 <= yy < rows and 0 <= xx < columns:
                out[before + y * columns + x] += kernel[:, i, j] * v[before + yy * columns + xx]
    return out


@restates("sla")
def sla(site: Site) -> np.ndarray:
    """Dense rectified weights; the convolution head by head."""
    h, before = site.q.shape[1], site.before
    positions = site.weights["positions"]
    k = site.k + positions.repeat(h // positions.shape[1], 1)
    weights = np.maximum(site.q, 0) @ swap(np.maximum(k, 0))
    out = weights @ site.v / (weights.sum(-1, keepdims=True) + 1e-6)
    for b, head in np.ndindex(out.shape[:2]):
        out[b, head] += convolved(site.v[b, head], site.weights["conv"], site.grid, before)
        out[b, head, before:] += site.weights["conv_bias"]
    return out
