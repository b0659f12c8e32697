"""torch.compile with subquad as its backend: train, change the length, take a linear recipe, read the log.

    python examples/torch_compile.py
"""

import torch
from torch import nn

import subquad

torch.manual_seed(0)


class Block(nn.Module):
    """Attention as people write it by hand, and a linear layer behind a graph break."""

    def __init__(self, width=64, heads=4):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5).softmax(-1)
        y = (weights @ v).transpose(1, 2).reshape(b, n, width)
        torch._dynamo.graph_break()  # a print or a logger would do the same
        return x + self.out(y)


model = Block()
fast = torch.compile(model, backend="subquad")  # subquad need not be imported for this line

# Training goes on as ever: the parameters are the model's own.
steps = torch.optim.Adam(model.parameters(), lr=1e-2)
for length in (48, 64, 80, 96):
    x = torch.randn(2, length, 64)
    steps.zero_grad()
    loss = (fast(x) - x.flip(-1)).square().mean()
    loss.backward()
    steps.step()
    print(f"length {length}: loss {loss.item():.3f}, {len(subquad.dynamo.graphs)} graphs compiled so far")

# What happened to each graph that Dynamo found.
for graph in subquad.dynamo.graphs:
    print(f"graph {graph.id}: {len(graph.graph.ops())} ops,", [str(site.decision) for site in graph.sites])

x = torch.randn(2, 512, 64)
with torch.no_grad():
    exact = model(x)
    print(f"\nlargest difference to eager torch: {(fast(x) - exact).abs().max():.1e}")

    # An approximation, because it is named. The length is a size of the graph, so this one serves all.
    torch._dynamo.reset()
    linear = torch.compile(model, backend="subquad", dynamic=True, options={"attention": "elu1"})
    print(f"largest difference with elu1: {(linear(x) - exact).abs().max():.1e}\n")

print(subquad.dynamo.graphs[0].log)
