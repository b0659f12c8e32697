"""torch's own modules of attention, in the ways they are called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.case import tiny

from .inputs import BATCH, TOKENS, noise, padded, register


class Layers(nn.Module):
    """nn.TransformerEncoder with a padding mask, a causal mask, or both."""

    def __init__(self, causal: bool = False, norm_first: bool = False, batch_first: bool = True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=batch_first, norm_first=norm_first)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.causal = causal

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """x [b, n, 32], or [n, b, 32]; pad [b, n], True where there is nothing."""
        n = x.shape[1] if self.layers.layers[0].self_attn.batch_first else x.shape[0]
        mask = nn.Transformer.generate_square_subsequent_mask(n) if self.causal else None
        if mask is not None and pad is not None:
            mask = mask.isinf()
        return self.layers(x, mask=mask, src_key_padding_mask=pad, is_causal=self.causal)


class Translator(nn.Module):
    """nn.Transformer with a causal target."""

    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(32, 4, 2, 2, 48, batch_first=True)

    def forward(self, source: Tensor, target: Tensor, pad: Tensor) -> Tensor:
        """source [b, n, 32], target [b, m, 32], pad [b, n]."""
        future = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        return self.transformer(source, target, tgt_mask=future, tgt_is_causal=True,
                                src_key_padding_mask=pad, memory_key_padding_mask=pad)  # fmt: skip


class Multihead(nn.Module):
    """nn.MultiheadAttention between two sequences, with the weights averaged, by head, or not at all."""

    def __init__(self, weights: str = "none", **options: Any):
        super().__init__()
        self.attention, self.weights = nn.MultiheadAttention(32, 4, batch_first=True, **options), weights

    def forward(self, x: Tensor, y: Tensor, pad: Tensor) -> Any:
        """x [b, n, 32] looks at y [b, m, 32] where pad [b, m] is False."""
        need = self.weights != "none"
        found = self.attention(x, y, y, key_padding_mask=pad, need_weights=need,
                               average_attn_weights=self.weights == "mean")  # fmt: skip
        return found if need else found[0]


def padding(b: int, n: int) -> Tensor:
    """True where rows of `padded` have nothing."""
    return padded(b, n) == 0


def one(b: int, n: int) -> dict[str, Any]:
    """A sequence without padding."""
    return {"x": noise(b, n, 32)}


def one_padded(b: int, n: int) -> dict[str, Any]:
    """A sequence with padding."""
    return {"x": noise(b, n, 32), "pad": padding(b, n)}


def two(b: int, n: int) -> dict[str, Any]:
    """Two sequences, the second with padding."""
    return {"x": noise(b, n, 32), "y": noise(b, n + 3, 32), "pad": padding(b, n + 3)}


def source_and_target(b: int, n: int) -> dict[str, Any]:
    """Two sequences, the first with padding."""
    return {"source": noise(b, n, 32), "target": noise(b, n - 3, 32), "pad": padding(b, n)}


for name, make, inputs in (
    ("nn-encoder", Layers, one),
    ("nn-encoder-padded", Layers, one_padded),
    ("nn-encoder-norm-first", lambda: Layers(norm_first=True), one_padded),
    ("nn-encoder-sequence-first", lambda: Layers(batch_first=False), one),
    ("nn-encoder-causal", lambda: Layers(causal=True), one),
    ("nn-encoder-causal-padded", lambda: Layers(causal=True), one_padded),
    ("nn-transformer", Translator, source_and_target),
    ("nn-multihead", Multihead, two),
    ("nn-multihead-mean", lambda: Multihead("mean"), two),
    ("nn-multihead-heads", lambda: Multihead("heads"), two),
    ("nn-multihead-bias-kv", lambda: Multihead(add_bias_kv=True), two),
    ("nn-multihead-zero", lambda: Multihead(add_zero_attn=True), two),
):
    family = "seq2seq" if name == "nn-transformer" else "encoder"
    axes: Any = {0: TOKENS[1], 1: BATCH[0]} if "sequence-first" in name else TOKENS
    if inputs is two:  # nothing in the module says that the batches are one
        axes = {"x": {0: "b", 1: "n"}, "y": {0: "b", 1: "m"}, "pad": {0: "b", 1: "m"}}
    register(name, family, lambda make=make: tiny(make), inputs, (2, 10), (3, 14), axes)
