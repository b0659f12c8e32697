"""LION, arXiv:2407.18232, with Mamba, RetNet and RWKV-6 (arXiv:2404.05892)."""

import itertools

import numpy as np

from . import Site, restates
from .ehrmamba import selective
from .steps import apart, conv, recurrence, rms, silu

WINDOW, GROUP = 3, 8


def groups(site: Site) -> list[list[int]]:
    """The tokens of the grid in groups: sorted by window, then by place in it; x before y, or y before x."""
    shift = WINDOW // 2 if site.index // 2 % 2 else 0

    def key(cell):
        turned = [c + shift for c in cell[::-1]]  # x, y
        if site.index % 2:
            turned[0], turned[1] = turned[1], turned[0]
        return [c // WINDOW for c in turned], [c % WINDOW for c in turned]

    cells = list(itertools.product(*map(range, site.grid)))
    order = sorted(range(len(cells)), key=lambda i: key(cells[i]))
    return [[site.before + i for i in order[at : at + GROUP]] for at in range(0, len(order), GROUP)]


def with_first(site: Site, out: np.ndarray) -> np.ndarray:
    """The class tokens attend to all."""
    for i in range(site.before):
        weights = np.exp(site.scale * np.einsum("bhd,bhmd->bhm", site.q[:, :, i], site.k))
        out[:, :, i] = np.einsum("bhm,bhme->bhe", weights, site.v) / weights.sum(-1, keepdims=True)
    return out


SPECS = dict(lengths=(), grids=((1, 1), (2, 3), (5, 7)))


@restates("lion(window=3,group=8,state=2)", sizes={"c": 17, "h": 2}, **SPECS)
def lion(site: Site) -> np.ndarray:
    """A selective scan over each group from both ends."""
    w, y = site.weights, np.zeros((*site.tokens.shape[:2], 34))
    u, z = np.split(site.tokens @ w["in"].T, 2, axis=-1)
    for group in groups(site):
        for name, walk in (("there_", group), ("back_", group[::-1])):
            keep = np.ones((len(u), len(walk)), bool)
            part = silu(conv(u[:, None, walk], w[name + "conv"], keep)[:, 0])
            y[:, walk] += selective(part, w, keep, state=2, rank=2, name=name)
    y = (y * silu(z)) @ w["out"].T
    y = y - y.mean(-1, keepdims=True)
    y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5) * w["norm"] + w["norm_bias"]
    return with_first(site, apart(y, site.q.shape[1]))


def gate(site: Site) -> np.ndarray:
    """The swish gate."""
    return apart(silu(site.tokens @ site.weights["gate"].T + site.weights["gate_bias"]), site.q.shape[1])


@restates("lion_retnet(window=3,group=8)", **SPECS)
def lion_retnet(site: Site) -> np.ndarray:
    """Retention by the distance between the sorted tokens of a group."""
    out, h = np.zeros_like(site.v), site.q.shape[1]
    gamma = 1 - 2.0 ** (-5 - np.arange(h))
    for group in groups(site):
        at = np.arange(len(group))
        decay = gamma[:, None, None] ** np.abs(at[:, None] - at)
        scores = site.scale * site.q[:, :, group] @ np.swapaxes(site.k[:, :, group], -1, -2)
        out[:, :, group] = rms((scores * decay) @ site.v[:, :, group], 1e-6)
    return with_first(site, out * gate(site))


@restates("lion_rwkv(window=3,group=8,rank=3)", **SPECS)
def lion_rwkv(site: Site) -> np.ndarray:
    """The state before each token from either end, and the token itself by its bonus."""
    w, h, out = site.weights, site.q.shape[1], np.zeros_like(site.v)
    lora = np.tanh(site.tokens @ w["decay_down"].T) @ w["decay"].T + w["decay_bias"]
    factor = apart(np.exp(-np.exp(lora)), h)
    for group in groups(site):
        total = 0.0
        for walk in (group, group[::-1]):
            q, k, v, f = (x[:, :, walk] for x in (site.q, site.k, site.v, factor))
            x = q / f  # the state before a token, read without the token's own decay
            read = recurrence(x, k, v, f, np.ones((len(q), len(walk)), bool))
            read = read - (x * k).sum(-1, keepdims=True) * v
            total = total + (read if walk is group else read[:, :, ::-1])
        q, k, v = (x[:, :, group] for x in (site.q, site.k, site.v))
        own = (q * w["bonus"][:, None] * k).sum(-1, keepdims=True) * v
        out[:, :, group] = rms(site.scale * (total + own)) * w["norm"]
    return with_first(site, out * gate(site))
