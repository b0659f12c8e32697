"""Block top-k attention, arXiv:2506.05333."""

import numpy as np

from . import Site, restates

SIZE = 8


def chosen(site: Site, b: int, heads: range, block: int, size: int, count: int, sinks: int) -> list[int]:
    """The blocks of keys a block of queries takes, by the mean query of these heads and the mean keys.

    Causal, by its first query: the others come after queries that it decides for.
    """
    n = site.k.shape[2]
    pages = [[t for t in range(s, min(s + size, n)) if site.keep[b, t]] for s in range(0, n, size)]
    mine = pages[block][:1] if site.causal else pages[block]
    mean_q = sum((site.q[b, h, t] for h in heads for t in mine), np.zeros(site.q.shape[3]))
    scores = {}
    for j, page in enumerate(pages):
        if page and (j < block or not site.causal):
            first = j - 1e9 if j < sinks else 0.0  # before all others
            scores[j] = (first, -mean_q @ site.k[b, heads[0], page].mean(0))
    return sorted(scores, key=lambda j: scores[j])[:count]


def kinetics(site: Site, count: int = 2, sinks: int = 1, rest: str = "none") -> np.ndarray:
    """Block by block of queries: which pages, then the softmax over what they hold; two heads share keys."""
    out = np.zeros((*site.q.shape[:3], site.v.shape[3]))
    n = site.k.shape[2]
    for b, h, i in np.ndindex(*out.shape[:3]):
        heads, block = range(h - h % 2, h - h % 2 + 2), i // SIZE
        near = chosen(site, b, heads, block, SIZE, count, sinks)
        k, v, keep = site.k[b, h], site.v[b, h], site.keep[b]
        weights, values = [], []
        for j in range(-(-n // SIZE)):
            page = [t for t in range(j * SIZE, min(j * SIZE + SIZE, n)) if keep[t]]
            own = site.causal and j == block
            if j in near or own:
                for t in page:
                    if not own or t <= i:
                        weights.append(np.exp(site.scale * site.q[b, h, i] @ k[t]))
                        values.append(v[t])
            elif rest == "zeroth" and page and (j < block or not site.causal):
                weights.append(len(page) * np.exp(site.scale * site.q[b, h, i] @ k[page].mean(0)))
                values.append(v[page].mean(0))
        if weights:
            out[b, h, i] = np.asarray(weights) @ np.asarray(values) / sum(weights)
    return out


restates("kinetics(size=8,pages=2)", linear=False)(kinetics)
restates(
    "kinetics(size=8,pages=1,sinks=0,rest=zeroth)", linear=False, lengths=(3, 33),
    options={"count": 1, "sinks": 0, "rest": "zeroth"},
)(kinetics)  # fmt: skip
