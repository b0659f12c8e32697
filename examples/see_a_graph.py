"""See a model the way subquad does: a typed graph, what each pass did to it, and why not more.

python examples/see_a_graph.py
"""

import torch
from torch import nn

import subquad
from subquad import ir


class Block(nn.Module):
    """Attention written out by hand, as most model code has it."""

    def __init__(self, d: int = 64, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(d)
        self.q, self.k, self.v = (nn.Linear(d, d) for _ in range(3))

    def forward(self, x, keep):
        y = self.norm(x)
        q, k, v = (f(y) for f in (self.q, self.k, self.v))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~keep[:, None, None, :], float("-inf"))
        return x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


torch.manual_seed(0)
model = Block().eval()
x, keep = torch.randn(2, 16, 64), torch.ones(2, 16, dtype=torch.bool)
keep[1, 12:] = False

fast = subquad.optimize(model, (x, keep))

print("The graph as captured, with the line of this file each op came from:\n")
captured = fast.log.steps[0].before
print(ir.print_graph(captured, sources=True))

print("\nThe graph after the exact passes:\n")
print(fast.graph)

print("\nWhat each pass did:\n")
print(fast.log)

print("\nThe ops that the last pass which changed anything took away and put in:\n")
changed = [step for step in fast.log.steps if step.before is not step.after]
print(fast.log.diff(changed[-1]))

print("\nThe attention it found:\n")
for site in fast.sites:
    heads = f"{site.q_heads} heads of {site.head_dim}"
    print(f"  {site.path or 'the model'}: mask {site.mask}, {heads}, {site.decision}")

# The text is the graph: it can be kept in a file, compared, and read back.
again = subquad.parse(str(fast.graph))
assert ir.isomorphic(again, fast.graph)

# And it is data: here, how many of each op there are.
counts: dict[str, int] = {}
for op in fast.graph.ops():
    counts[op.name] = counts.get(op.name, 0) + 1
print("\nOps:", ", ".join(f"{name} {n}" for name, n in sorted(counts.items())))
