"""Attention over sets of points: Point Transformer, Point Cloud Transformer, Set Transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.case import tiny

from .inputs import TOKENS, noise, register


class VectorAttention(nn.Module):
    """Point Transformer (arXiv:2012.09164): a weight for each channel, over the nearest neighbours."""

    def __init__(self, width: int, neighbours: int):
        super().__init__()
        self.neighbours = neighbours
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.place = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width))
        self.weigh = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, xyz: Tensor) -> Tensor:
        """Features x [b, n, width] of points xyz [b, n, 3]."""
        apart = (xyz[:, :, None] - xyz[:, None]).square().sum(-1)
        near = apart.topk(self.neighbours, largest=False).indices
        rows = torch.arange(xyz.shape[0])[:, None, None]
        place = self.place(xyz[:, :, None] - xyz[rows, near])
        scores = self.weigh(self.q(x)[:, :, None] - self.k(x)[rows, near] + place)
        return x + (scores.softmax(2) * (self.v(x)[rows, near] + place)).sum(2)


class OffsetAttention(nn.Module):
    """Point Cloud Transformer (arXiv:2012.09688): softmax over queries, then rows sum to one; x - result."""

    def __init__(self, width: int):
        super().__init__()
        self.q = nn.Linear(width, width // 4, bias=False)
        self.v, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [b, n, width]; queries and keys share their weights."""
        q = self.q(x)
        weights = (q @ q.transpose(1, 2)).softmax(1)
        weights = weights / (1e-9 + weights.sum(2, keepdim=True))
        return x + torch.relu(self.out(x - weights @ self.v(x)))


class InducedAttention(nn.Module):
    """Set Transformer (arXiv:1810.00825): the set reaches itself through a few learnt points."""

    def __init__(self, width: int, induced: int = 4):
        super().__init__()
        self.induced = nn.Parameter(torch.randn(1, induced, width))
        self.gather = nn.MultiheadAttention(width, 4, batch_first=True)
        self.spread = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """x [b, n, width]."""
        points = self.induced.expand(x.shape[0], -1, -1)
        held = points + self.gather(points, x, x, need_weights=False)[0]
        return x + self.spread(x, held, held, need_weights=False)[0]


class Cloud(nn.Module):
    """Two layers over a cloud of points, and what the whole is."""

    def __init__(self, kind: type[nn.Module], *sizes: int, width: int = 32):
        super().__init__()
        self.rise = nn.Linear(3, width)
        self.layers = nn.ModuleList(kind(width, *sizes) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, xyz: Tensor) -> Tensor:
        """Scores [b, 5] of points [b, n, 3]."""
        x = self.rise(xyz)
        for layer in self.layers:
            x = layer(x, xyz) if isinstance(layer, VectorAttention) else layer(x)
        return self.head(x.amax(1))


for name, make in (
    ("point-transformer", lambda: Cloud(VectorAttention, 4)),
    ("point-cloud-transformer", lambda: Cloud(OffsetAttention)),
    ("set-transformer", lambda: Cloud(InducedAttention)),
):
    register(name, "point-cloud", lambda make=make: tiny(make), lambda b, n: {"xyz": noise(b, n, 3)},
             (2, 24), (3, 40), TOKENS)  # fmt: skip
