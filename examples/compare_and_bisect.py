"""A rewrite rule that is wrong, and three ways to find out.

python examples/compare_and_bisect.py
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import subquad
from subquad.ir import OPS, rewrite

relu = OPS["relu"]


@subquad.rule(lambda x, *, c: relu(x * c))
def relu_of_scaled(x, *, c):
    """relu(c x) = c relu(x), which holds only for c >= 0. Somebody forgot the guard:

    if c < 0: return subquad.No(f"{c} is negative")
    """
    return relu(x) * c


@subquad.pass_
def pull_out_scales(graph: subquad.Graph) -> subquad.Graph:
    """Moves scales past relu."""
    return rewrite(graph, [relu_of_scaled])


class Net(nn.Module):
    """Six layers, of which one scales by a negative number."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = torch.relu(layer(x) * (-0.5 if i == 3 else 2.0))
        return x


torch.manual_seed(0)
model, x = Net().eval(), torch.randn(4, 16)
pipeline = subquad.Pipeline(pull_out_scales)

print("1. A checked run undoes the pass and names the rule; the result is right:\n")
fast = subquad.optimize(model, (x,), pipeline=pipeline)
print(fast.log)
subquad.compare(model, fast, (x,), repeats=0).assert_close()

print("\n2. Unchecked, the result is wrong, and compare says how wrong:\n")
wrong = subquad.optimize(model, (x,), pipeline=pipeline, check=False)
try:
    subquad.compare(model, wrong, (x,), repeats=0).assert_close()
except AssertionError as error:
    print(error)
else:
    raise SystemExit("the wrong rule was not noticed")

print("\n3. bisect ends at the one application, and writes a file that shows it:\n")
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "guilty.ir"
    culprit = subquad.bisect(model, (x,), pipeline=pipeline, path=path)
    assert culprit is not None and culprit.rule == "relu_of_scaled"
    print(path.read_text())
