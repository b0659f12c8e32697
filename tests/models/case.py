"""What a model of the zoo is: a name, a family, and a function that builds it tiny and seeded.

    @case("vit-sdpa", "vision")
    def _():
        config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ...)
        return tiny(lambda: ViTModel(config)), {"pixel_values": torch.randn(2, 3, 32, 32)}

Files under `families/` register their cases when they are imported; `cases()` imports them all.
A build runs in a process of its own (see `run.py`), so whatever it raises is that model's reason.
Libraries such as transformers are imported inside builders, never at the top of a file.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

FAMILIES = (
    "causal-lm", "encoder", "seq2seq", "vision", "audio", "diffusion", "multimodal", "point-cloud",
    "time-series",
)  # fmt: skip

LARGEST = 8_000_000
"""Parameters that a model of the zoo may have: a config that was not shrunk takes gigabytes."""


@dataclass(frozen=True)
class Case:
    """One model of the zoo.

    build: the model, in eval mode and float32, and the keyword arguments of a call of `forward`.
    second: inputs of another shape (left-padded for language models); None where sizes are fixed.
    dynamic_shapes: as torch.export takes it, keyed by argument, {"input_ids": {0: "b", 1: "n"}}; with
    it the model is captured a second time, from the inputs of `build`, and called with those of `second`.
    fast: one of the few in every test run.
    """

    name: str
    family: str
    build: Callable[[], tuple[nn.Module, dict[str, Any]]]
    second: Callable[[], dict[str, Any]] | None = None
    dynamic_shapes: Any = None
    fast: bool = False

    @property
    def id(self) -> str:
        """family/name."""
        return f"{self.family}/{self.name}"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"{self.name}: no family {self.family!r}; there are {', '.join(FAMILIES)}")
        if (self.second is None) != (self.dynamic_shapes is None):
            raise ValueError(f"{self.name}: second and dynamic_shapes are given together or not at all")


class NotBuiltError(Exception):
    """Why a model of the zoo cannot be built here; the text stands in the table."""


CASES: dict[str, Case] = {}
"""Every case that was registered so far, by id; `cases()` fills it."""


def case(name: str, family: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what it decorates as the builder of a case; `options` are the fields of `Case`."""

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        made = Case(name, family, build, **options)
        if CASES.setdefault(made.id, made) is not made:
            raise ValueError(f"two cases are called {made.id!r}")
        return build

    return register


def cases() -> dict[str, Case]:
    """Every case of the zoo, by id."""
    package = __name__.rpartition(".")[0]
    import_module(f"{package}.causal_lm")
    families = import_module(f"{package}.families")
    for module in sorted(m.name for m in pkgutil.iter_modules(families.__path__)):
        import_module(f"{families.__name__}.{module}")
    return CASES


def tiny(make: Callable[[], nn.Module]) -> nn.Module:
    """The model that `make` builds, seeded, in eval mode; refused on `meta` when it is not tiny.

    Raises NotBuiltError above LARGEST parameters. A model that cannot be made on `meta` is made at
    once: the process has a limit of its own.
    """
    try:
        with torch.device("meta"):
            size = count(make())
    except Exception:
        size = 0
    if size > LARGEST:
        raise NotBuiltError(f"{size:,} parameters, {LARGEST:,} at most")
    torch.manual_seed(0)
    model = make().eval().float().requires_grad_(False)
    return spread(model)


def count(model: nn.Module) -> int:
    """Parameters of a model."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def spread(model: nn.Module) -> nn.Module:
    """`model` with weights that matter: fresh ones are so small that attention is near uniform.

    Matrices get the variance 1 / fan-in; what is constant (norms, biases, gates) gets noise of 0.1.
    Without it a wrong scale or a lost bias would stay below any tolerance.
    """
    draw = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if not p.is_floating_point() or not p.isfinite().all():
            continue
        deviation = float(p.std()) if p.numel() > 1 else 0.0
        if deviation == 0.0:
            p += 0.1 * torch.randn(p.shape, generator=draw)
        elif p.dim() > 1 and deviation < 0.1:
            p *= p[0].numel() ** -0.5 / deviation
    return model
