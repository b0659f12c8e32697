"""Why is this not attention? Every softmax of a model: what it is, its mask, and what stands in the way.

python examples/explain_attention.py
subquad explain explain_attention:make_model        the same from the command line, in this folder
"""

import torch
from torch import nn

import subquad


class Attention(nn.Module):
    """Written out by hand. `over` is the axis of the softmax; `show` returns the weights too."""

    def __init__(self, d: int = 32, heads: int = 4, over: int = -1, show: bool = False):
        super().__init__()
        self.heads, self.over, self.show = heads, over, show
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        i = torch.arange(x.shape[1])
        near = (i[None] <= i[:, None]) & (i[None] > i[:, None] - 8)  # the last eight keys
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~near, float("-inf")).softmax(self.over)
        y = self.out((weights @ v).transpose(1, 2).flatten(2))
        return (y, weights) if self.show else y


class Router(nn.Module):
    """Weighs two experts of four."""

    def __init__(self, d: int = 32):
        super().__init__()
        self.scores, self.experts = nn.Linear(d, 4), nn.Parameter(torch.randn(4, d))

    def forward(self, x):
        weights, chosen = self.scores(x).softmax(-1).topk(2)
        return (self.experts[chosen] * weights[..., None]).sum(-2)


class Model(nn.Module):
    """Two layers as they should be, one with its softmax over the wrong axis, one that is watched."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Attention(), Attention()])
        self.wrong, self.router, self.watched = Attention(over=-2), Router(), Attention(show=True)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        x = x + self.wrong(x)
        return self.watched(x + self.router(x))


def make_model():
    """What `subquad explain` asks for: a model and example inputs."""
    torch.manual_seed(0)
    return Model().eval(), (torch.randn(2, 16, 32),)


if __name__ == "__main__":
    model, args = make_model()
    explanation = subquad.explain(model, args)
    print(explanation)

    print("\nOne place, and all as data:\n")
    print(explanation.log.why("wrong"))
    for site in explanation.sites:
        print(f"    {site.path:10} {site.status:14} {site.mask:14} {site.parameters}")

    model.wrong.over, model.watched.show = -1, False
    print("\nWith the axis of the keys, and the weights kept to itself:\n")
    print(subquad.explain(model, args).sites)

    # optimize carries the same explanation, here with a recipe asked for by name.
    fast = subquad.optimize(model, args, attention={"layers.*": "window(size=8)"})
    print("\nWith a recipe at the first two:\n")
    print(fast.log.why("attention"))
