"""Write a recipe: a replacement for attention whose cost grows linearly with the tokens.

    python examples/write_a_recipe.py

Efficient attention (Shen et al. 2018, arXiv:1812.01243) takes one softmax over the features of
each query and one over the tokens of each key feature, so that the product can be done from the
right: q' (k'^T v) instead of (q' k'^T) v.
"""

import torch
from torch import nn
from torch.nn import functional as F

import subquad
from subquad.ir import OPS

softmax, matmul, permute = OPS["softmax"], OPS["matmul"], OPS["permute"]


# q is [b, h, n, d], k is [b, g, m, d], v is [b, g, m, e]; the result is [b, h, n, e]. Where h and g
# differ (grouped queries) this one builds another type than it should, and is refused by itself.
@subquad.recipe(paper="arXiv:1812.01243", kind="needs training", masks={"none"})
def efficient(q, k, v, site, *, temperature: float = 1.0):
    """Efficient attention: softmax over features of q, over tokens of k."""
    k = softmax(k * temperature, dim=-2)
    context = matmul(permute(k, dims=(0, 1, 3, 2)), v)  # [b, h, d, e], whatever n is
    return matmul(softmax(q * temperature, dim=-1), context)


class Layer(nn.Module):
    """Self-attention, causal or not."""

    def __init__(self, d: int = 128, heads: int = 4, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return x + self.out(y.transpose(1, 2).flatten(2))


torch.manual_seed(0)
model = nn.Sequential(Layer(), Layer(causal=True)).eval()
axes = ({1: torch.export.Dim("n")},)
x = torch.randn(1, 256, 128)

print("1. By its name, everywhere it may be used. It is no use for a causal mask, and says so:\n")
fast = subquad.optimize(model, (x,), attention="efficient", dynamic_shapes=axes)
for site in fast.sites:
    print(f"  {site.path}: mask {site.mask}, {site.decision} {site.reason}")
print(f"\n{fast.log.why('linearize')}")

print("\n2. What it costs and saves, in the one layer where it applies:\n")
layer = nn.Sequential(Layer()).eval()
fast = subquad.optimize(layer, (x,), attention="efficient(temperature=2)", dynamic_shapes=axes)
comparison = subquad.compare(
    layer,
    fast,
    (x,),
    lengths=[256, 512, 1024, 2048, 4096],
    make_args=lambda n: (torch.randn(1, n, 128),),
    seconds=0.5,
)
print(comparison)

print("\n3. It stays trainable: forty steps towards the layer it replaced.\n")
optimizer = torch.optim.Adam(fast.parameters(), lr=1e-2)
for step in range(40):
    loss = F.mse_loss(fast(x), layer(x).detach())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (0, 39):
        print(f"  step {step:2}: mean squared error {loss.item():.2e}")
