"""A vision transformer at high resolution, where attention is most of the work.

    python examples/vision_transformer_high_res.py

A picture of s x s pixels in patches of 8 is (s / 8)^2 tokens: 256 pixels are 1,024 of them,
512 are 4,096, and attention costs the square of that.
"""

import torch
from torch import nn
from torch.nn import functional as F

import subquad


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches of 8 x 8, sinusoidal positions (so that any size will do), mean over the tokens."""

    def __init__(self, d: int = 192, heads: int = 3, layers: int = 3, classes: int = 10):
        super().__init__()
        self.patch = nn.Conv2d(3, d, kernel_size=8, stride=8)
        self.register_buffer("rates", torch.exp(torch.linspace(0, -6, d // 4)))
        self.blocks = nn.Sequential(*(Block(d, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, classes)

    def positions(self, rows: int, columns: int):
        places = (torch.arange(n, dtype=torch.float32)[:, None] for n in (rows, columns))
        angles = [place * self.rates for place in places]
        y, x = (torch.cat([a.sin(), a.cos()], -1) for a in angles)
        y, x = y[:, None].expand(-1, columns, -1), x[None].expand(rows, -1, -1)
        return torch.cat([y, x], -1).flatten(0, 1)

    def forward(self, pictures):
        x = self.patch(pictures)
        x = x.flatten(2).transpose(1, 2) + self.positions(x.shape[2], x.shape[3])
        return self.head(self.norm(self.blocks(x)).mean(1))


torch.manual_seed(0)
model = ViT().eval()

for size in (128, 256, 512):
    pictures = torch.randn(1, 3, size, size)
    exact = subquad.optimize(model, (pictures,), check=size <= 128)
    linear = subquad.optimize(model, (pictures,), attention="elu1", check=False)
    tokens = (size // 8) ** 2
    subquad.compare(model, exact, (pictures,), repeats=0).assert_close()
    comparison = subquad.compare(model, linear, (pictures,), repeats=3)
    before, after = comparison.memory
    print(
        f"{size:4} pixels, {tokens:5} tokens: elu1 {comparison.speedup} times faster,"
        f" {before / after:.2f} times less memory, output cosine"
        f" {comparison.outputs[0].optimized.cosine:.3f} (random weights, nothing trained)"
    )

print("\nWhat the exact run at the last size says could be gained:\n")
print(exact.log)
