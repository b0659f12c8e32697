"""What the builders of this folder share: models by the names of their classes, and seeded inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..case import case, tiny

WIDTHS = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
"""The sizes that most configs of transformers call by these names."""

BATCH = {0: Dim.AUTO}
TOKENS = {0: Dim.AUTO, 1: Dim.AUTO}
"""Open axes. torch finds which are equal, and their ranges; one that it fixes is found by the second call."""


def pretrained(model: str, config: str, /, attention: Any = "eager", **sizes: Any) -> nn.Module:
    """A model of transformers with random weights, by its class and the class of its config.

    attention: "eager", "sdpa", or a mapping of these by the configs of the model's parts.
    """
    import transformers

    cls, made = getattr(transformers, model), getattr(transformers, config)(**sizes)
    return tiny(lambda: cls._from_config(made, attn_implementation=attention))


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
    axes: dict[Any, Any] | None = None,
    **options: Any,
) -> None:
    """Register the model of `make` on `inputs(*sizes)`, and on `inputs(*second)` with `axes` open.

    axes: the open axes, of all inputs alike, or a mapping of these by argument.
    """
    if second is not None:
        given, axes = inputs(*sizes), axes or BATCH
        own = axes if all(isinstance(k, str) for k in axes) else dict.fromkeys(given, axes)
        shapes = {k: own.get(k) if isinstance(x, Tensor) else closed(x) for k, x in given.items()}
        options |= {"second": lambda: inputs(*second), "dynamic_shapes": shapes}

    def build() -> tuple[nn.Module, dict[str, Any]]:
        model, kwargs = make(), inputs(*sizes)
        return settled(model, kwargs), kwargs

    case(name, family, **options)(build)


def closed(x: Any) -> Any:
    """No open axes for what is no tensor."""
    return {k: closed(v) for k, v in x.items()} if isinstance(x, dict) else None


@torch.no_grad()
def settled(model: nn.Module, kwargs: dict[str, Any]) -> nn.Module:
    """`model` with the statistics of one call in its batch norms: fresh ones let a deep signal die."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms:
        for norm in norms:
            norm.train().momentum = 1.0
        model(**kwargs)
        for norm in norms:
            norm.running_var.clamp_(min=0.1)  # a channel that hardly varies is not blown up
        model.eval()
    return model
