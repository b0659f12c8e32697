"""What is linear in tokens without any approximation: a window of attention, and retention.

    python tests/benchmarks/bench_exact_linear.py

Each model beside itself after the exact passes, call by call in turn: times, the median of their ratios
and its range, errors against float64.
"""

import torch
from torch import nn

import subquad


class Retention(nn.Module):
    """Retention written as a square (arXiv:2307.08621): scores times exp((i - j) rate), no softmax."""

    def __init__(self, width: int = 512, heads: int = 8):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("rate", torch.log(1 - 2.0 ** (-5.0 - torch.arange(heads))))

    def forward(self, x):
        """x [b, n, width]."""
        n = x.shape[1]
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        i = torch.arange(n)
        decay = torch.exp((i[:, None] - i) * self.rate[:, None, None])
        decay = torch.where(i[:, None] >= i, decay, 0.0)
        y = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5 * decay) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def mistral() -> nn.Module:
    """One layer with a window of 256."""
    from transformers import MistralConfig, MistralModel

    return MistralModel(
        MistralConfig(
            hidden_size=512, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=2,
            intermediate_size=1024, vocab_size=1000, sliding_window=256, use_cache=False,
        )
    )  # fmt: skip


def main() -> None:
    """Print both comparisons."""
    torch.manual_seed(0)
    cases = {
        "a Mistral layer, window 256, 8192 tokens": (mistral(), torch.randint(0, 1000, (1, 8192))),
        "retention written as a square, 4096 tokens": (Retention(), torch.randn(1, 4096, 512)),
    }
    for title, (model, x) in cases.items():
        fast = subquad.optimize(model.eval(), (x,), check=False)
        with torch.no_grad():
            print(f"{title}: {', '.join(sorted({op.name for op in fast.graph.ops()} & KINDS))}")
            print(subquad.compare(model, fast, (x,), repeats=5), flush=True)


KINDS = {"attention", "linear_attention"}

if __name__ == "__main__":
    main()
