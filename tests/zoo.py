"""Small models for the tests of the frontend, and what it means that two results are the same."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from subquad.backends import eager  # noqa: F401  (registers the backend)
from subquad.backends.base import backend
from subquad.frontend import OptimizedModule, capture


def optimized(model, args=(), kwargs=None, **options):
    """`model` captured and run by the eager backend, with no pass in between."""
    captured = capture(model, args, kwargs, **options)
    executable = backend("eager").compile(captured.graph, captured.modules)
    return OptimizedModule(model, captured, captured.graph, executable)


def leaves(result):
    """The leaves of a structure, in order."""
    return pytree.tree_leaves(result)


def assert_same(expected, given, atol=0.0):
    """The same structure and, bit for bit unless `atol`, the same tensors (NaN equals NaN)."""
    assert pytree.tree_structure(expected) == pytree.tree_structure(given)
    for a, b in zip(leaves(expected), leaves(given), strict=True):
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor):
            assert a.dtype is b.dtype and a.shape == b.shape
            torch.testing.assert_close(b, a, rtol=0, atol=atol, equal_nan=True)
        else:
            assert a == b


def copied(args):
    """Arguments with every tensor cloned, so that a model may write to them."""
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, args)


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, width=8):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, scale=None):
        """down(gelu(up(x))), perhaps scaled."""
        y = self.down(F.gelu(self.up(x)))
        return y if scale is None else y * scale


class Attention(nn.Module):
    """Softmax attention written out."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        """Self-attention of x [b, n, d]."""
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) / (d // self.heads) ** 0.5
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))


class Tied(nn.Module):
    """An embedding whose matrix is also the output layer's."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        """Logits."""
        return self.head(self.embed(ids))


class Norm(nn.Module):
    """Convolution and batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        """relu(norm(conv(x)))."""
        return F.relu(self.norm(self.conv(x)))


class Recurrent(nn.Module):
    """An LSTM and a layer on it."""

    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        """Output and states."""
        y, states = self.lstm(x)
        return self.out(y), states


class Counter(nn.Module):
    """Counts its calls in a buffer and keeps a running mean."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.scale = torch.arange(4.0)  # neither parameter nor buffer

    def forward(self, x):
        """x beside the mean so far, which it joins."""
        self.count += 1
        self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
        return x - self.mean + self.scale + torch.tensor([1.0, 2.0, 3.0, 4.0])


class Writer(nn.Module):
    """Writes to its inputs, one of them through a view."""

    def forward(self, x, y):
        """x doubled in place, the first row of y zeroed; returns x itself and a sum."""
        x.mul_(2)
        y[0].zero_()
        return x, x.sum() + y.sum()


class InPlace(nn.Module):
    """In-place ops on values of its own."""

    def forward(self, x, index):
        """div_, index_put_, scatter_ and masked_fill_."""
        y = (x * 1).div_(2)
        y[index] = 0.5
        y.scatter_(1, index[:, None], 3.0)
        return y.masked_fill_(y > 2, -1.0)


@dataclasses.dataclass
class Batch:
    """A dataclass of tensors."""

    tokens: torch.Tensor
    mask: torch.Tensor | None = None


class Structured(nn.Module):
    """Nested, keyword and dataclass inputs and outputs."""

    def forward(self, batch, *more, factor=2.0, **extra):
        """A dataclass, a dict, a tuple, a constant, None and a size."""
        total = batch.tokens * factor + sum(more) + extra["bias"]
        pair = {"total": total, "parts": [batch.tokens, (total.sum(), None, 7)]}
        return Batch(total + 1, batch.mask), pair, total.shape[0]
