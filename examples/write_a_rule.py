"""Write a rewrite rule: what it looks like before, a guard with a reason, what it becomes.

python examples/write_a_rule.py
"""

import numpy as np
import torch
from torch import nn

import subquad
from subquad.ir import OPS, evaluate, isomorphic, rewrite

exp = OPS["exp"]


# `before` is traced once with holes. The function below it runs at every match, on real values:
# it may look at their types, refuse with a reason, and build what comes instead.
@subquad.rule(lambda x, y: exp(x) * exp(y))
def product_of_exps(x, y):
    """exp(x) exp(y) = exp(x + y): one transcendental less an element."""
    if x.dtype.bits < 32:
        return subquad.No(f"exp(x + y) overflows sooner in {x.dtype}")
    return exp(x + y)


@subquad.pass_
def fold_exps(graph: subquad.Graph) -> subquad.Graph:
    """Multiplies exponentials by adding exponents."""
    return rewrite(graph, [product_of_exps])


# A rule is proved on text: before, after, and the same numbers from both.
before = subquad.parse("""
graph g(%x: f32[b,n], %y: f32[n]) {
  %0 = exp(%x) : f32[b,n]
  %1 = exp(%y) : f32[n]
  %2 = mul(%0, %1) : f32[b,n]
  return %2
}
""")
after = rewrite(before, [product_of_exps])
print(before, after, sep="\n\nbecomes\n\n")
assert isomorphic(
    after,
    subquad.parse("""
graph g(%x: f32[b,n], %y: f32[n]) {
  %0 = add(%x, %y) : f32[b,n]
  %1 = exp(%0) : f32[b,n]
  return %1
}
"""),
)
arrays = [np.random.default_rng(0).standard_normal(shape) for shape in ((3, 5), (5,))]
np.testing.assert_allclose(evaluate(before, arrays)[0], evaluate(after, arrays)[0], rtol=1e-12)


class Gate(nn.Module):
    """Where the rule applies, and, in bfloat16, where it says no."""

    def forward(self, x, y):
        return torch.exp(x) * torch.exp(y), torch.exp(x.bfloat16()) * torch.exp(y.bfloat16())


args = (torch.randn(4, 8), torch.randn(4, 8))
fast = subquad.optimize(Gate(), args, pipeline=subquad.Pipeline(fold_exps))
print(f"\n{fast.log}\n")
print("Why not everywhere?", fast.log.why("product_of_exps"))
subquad.compare(Gate(), fast, args, repeats=0).assert_close()
