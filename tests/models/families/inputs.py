"""What the builders of this folder share: models by the names of their classes, and seeded inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.case import case, tiny

WIDTHS = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
"""The sizes that most configs of transformers call by these names."""

BATCH = {0: "b"}
TOKENS = {0: "b", 1: "n"}


def pretrained(model: str, config: str, /, attention: str = "eager", **sizes: Any) -> nn.Module:
    """A model of transformers with random weights, by its class and the class of its config."""
    import transformers

    made = getattr(transformers, config)(**sizes)
    return tiny(lambda: with_attention(getattr(transformers, model), made, attention))


def with_attention(model: Any, config: Any, attention: str) -> nn.Module:
    """A model of class `model` whose attention, and that of its parts, is "eager" or "sdpa"."""
    return model._from_config(config, attn_implementation=attention)


def ids(b: int, n: int, vocabulary: int = 99) -> Tensor:
    """Token numbers [b, n] without the first four, which tend to be special."""
    return torch.randint(4, vocabulary, (b, n), generator=torch.Generator().manual_seed(b * n))


def padded(b: int, n: int) -> Tensor:
    """A mask [b, n] of 1 and 0: each row of the batch is shorter by one than the row before it."""
    return (torch.arange(n)[None] < n - torch.arange(b)[:, None]).long()


def noise(*shape: int) -> Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def text(b: int, n: int) -> dict[str, Tensor]:
    """`input_ids` [b, n] padded at the right, and their `attention_mask`."""
    return {"input_ids": ids(b, n), "attention_mask": padded(b, n)}


def register(
    name: str,
    family: str,
    make: Callable[[], nn.Module],
    inputs: Callable[..., dict[str, Any]],
    sizes: tuple[int, ...],
    second: tuple[int, ...] | None = None,
    axes: dict[int, str] | dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Register the model of `make` on `inputs(*sizes)`, and on `inputs(*second)` with `axes` open.

    axes: for each axis a name, of all inputs alike, or a mapping of these by argument.
    """
    if second is not None:
        axes = axes or BATCH
        shapes = axes if all(isinstance(k, str) for k in axes) else dict.fromkeys(inputs(*sizes), axes)
        options |= {"second": lambda: inputs(*second), "dynamic_shapes": shapes}
    case(name, family, **options)(lambda: (make(), inputs(*sizes)))
