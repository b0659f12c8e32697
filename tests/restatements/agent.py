"""Agent attention, arXiv:2312.08874, and its form for diffusion."""

import math

import numpy as np

from . import Site, restates


def softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def bounds(i: int, size: int, count: int) -> slice:
    """The i-th of `count` nearly equal windows of `size` places."""
    return slice(i * size // count, -(-(i + 1) * size // count))


def resample(table: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A table [y, x] at rows x columns places, bilinearly, edges repeated."""
    y, x = table.shape
    out = np.empty((rows, columns))
    for i, j in np.ndindex(rows, columns):
        top = min(max((i + 0.5) * y / rows - 0.5, 0), y - 1)
        left = min(max((j + 0.5) * x / columns - 0.5, 0), x - 1)
        a, c = int(top), int(left)
        b, d = min(a + 1, y - 1), min(c + 1, x - 1)
        s, t = top - a, left - c
        upper = (1 - t) * table[a, c] + t * table[a, d]
        out[i, j] = (1 - s) * upper + s * ((1 - t) * table[b, c] + t * table[b, d])
    return out


def agent(site: Site, agents: int = 4) -> np.ndarray:
    """Head by head, with dense biases."""
    (rows, columns), before, w = site.grid, site.before, site.weights
    side, out = math.isqrt(agents), np.zeros((*site.q.shape[:3], site.v.shape[3]))
    e = site.v.shape[3]
    for b, h in np.ndindex(*out.shape[:2]):
        q, k, v = site.q[b, h], site.k[b, h], site.v[b, h]
        picture = q[before:].reshape(rows, columns, -1)
        a = np.array([
            picture[bounds(i, rows, side), bounds(j, columns, side)].mean((0, 1))
            for i in range(side) for j in range(side)
        ])  # fmt: skip
        first, second = np.zeros((agents, len(k))), np.zeros((len(q), agents))
        for m in range(agents):
            b1 = resample(w["an_bias"][h, m], rows, columns) + w["ah_bias"][h, m] + w["aw_bias"][h, m]
            b2 = resample(w["na_bias"][h, m], rows, columns)
            b2 = b2 + w["ha_bias"][h, :, :, m] + w["wa_bias"][h, :, :, m]
            first[m, before:], second[before:, m] = b1.ravel(), b2.ravel()
            if before:
                first[m, :before], second[:before, m] = w["ac_bias"][h, m], w["ca_bias"][h, :, m]
        gathered = softmax(site.scale * a @ k.T + first) @ v
        out[b, h] = softmax(site.scale * q @ a.T + second) @ gathered
        edge = np.pad(v[before:].reshape(rows, columns, e), ((1, 1), (1, 1), (0, 0)))
        kernel, bias = w["dwc"][h * e : h * e + e], w["dwc_bias"][h * e : h * e + e]
        for i, j in np.ndindex(rows, columns):
            seen = edge[i : i + 3, j : j + 3]
            out[b, h, before + i * columns + j] += np.einsum("yxc,cyx->c", seen, kernel) + bias
    return out


restates("agent(agents=4)", options={"agents": 4})(agent)
restates("agent(agents=9)", options={"agents": 9}, grids=((2, 3), (5, 7)), before=(0, 2))(agent)


@restates("agent_sd(agents=4)", grids=((1, 1), (2, 3), (4, 4), (5, 7)))
def agent_sd(site: Site) -> np.ndarray:
    """Token by token: who joins which agent, then two softmaxes and a share of the values."""
    before, (rows, columns) = site.before, site.grid
    high, wide = min(2, rows), min(2, columns)
    if 2 * high * wide >= site.q.shape[2]:
        return softmax(site.scale * np.einsum("bhnd,bhmd->bhnm", site.q, site.k)) @ site.v
    places = [int(p) for p in site.weights["places"]]
    for i, j in np.ndindex(high, wide):  # each lies in its cell
        row, column = divmod(places[i * wide + j], columns)
        assert row // (rows // high) == i and column // (columns // wide) == j
    out = np.empty((*site.q.shape[:3], site.v.shape[3]))
    for b in range(len(out)):
        x = site.tokens[b, before:]
        x = x / np.sqrt((x**2).sum(-1, keepdims=True))
        groups = [[p] for p in places]
        for t in range(len(x)):
            if t not in places:
                groups[int(np.argmax([x[t] @ x[p] for p in places]))].append(t)
        for h in range(out.shape[1]):
            q, k, v = site.q[b, h], site.k[b, h], site.v[b, h]
            a = np.array([q[before:][group].mean(0) for group in groups])
            gathered = softmax(site.scale * a @ k.T) @ v
            out[b, h] = softmax(site.scale**0.3 * q @ a.T) @ gathered + 0.075 * v
    return out
