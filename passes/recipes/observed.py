"""What attention was seen to do at a site, and what weights of recipes follow from it in closed form.

    @closed_form("slots")
    def centres(seen, *, count, **options):
        return {"key": ..., "key_bias": ...}

A closed form gives some or all of what its recipe learns, by the names the recipe gave them; `options` are
the recipe's. What it does not give starts as the recipe says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .recipe import Recipe


@dataclass(frozen=True)
class Observed:
    """Attention at one site over calibration batches; f64, padded tokens left out.

    scale: of the scores. queries: [g, d, d], mean of q q^T over the queries of the heads that share a key
    head. keys: [g, s, d], a sample of keys, and mass: [g, s], the attention that each received from all
    queries. distance: [h], mean over queries of how many tokens away they look: mean distance where causal,
    root mean square distance both ways.
    """

    scale: float
    queries: np.ndarray
    keys: np.ndarray
    mass: np.ndarray
    distance: np.ndarray


ClosedForm = Callable[..., Mapping[str, np.ndarray]]
"""(Observed, **options) -> arrays by name; an array is broadcast to its weight."""

CLOSED: dict[str, ClosedForm] = {}
"""Closed forms by the name of their recipe."""


def closed_form(*recipes: str) -> Callable[[ClosedForm], ClosedForm]:
    """Register the decorated function as that of these recipes."""

    def register(function: ClosedForm) -> ClosedForm:
        CLOSED.update(dict.fromkeys(recipes, function))
        return function

    return register


def starts(recipe: Recipe, seen: Observed) -> dict[str, np.ndarray]:
    """What the recipe's closed form gives, nothing if it has none."""
    if recipe.name not in CLOSED:
        return {}
    options = {name: option.default for name, option in recipe.options.items()} | dict(recipe.given)
    return dict(CLOSED[recipe.name](seen, **options))


# ---- decays: a state halves where attention looks on average (Taylor-Calibrate) ----------------------


def step(seen: Observed) -> np.ndarray:
    """[h]: the log decay of a token, ln 2 / distance, as a positive step within 0.001 .. 5."""
    return np.clip(math.log(2) / np.maximum(seen.distance, 0.5), 1e-3, 5.0)


@closed_form("gated_deltanet", "mom")
def softplus_of(seen: Observed, **options: object) -> dict[str, np.ndarray]:
    """exp(A_log) softplus(dt_bias) is the step."""
    return {"dt_bias": np.log(np.expm1(step(seen)))}


@closed_form("kda")
def softplus_by_feature(seen: Observed, **options: object) -> dict[str, np.ndarray]:
    """The same for each feature of a head."""
    return {"dt_bias": np.repeat(np.log(np.expm1(step(seen))), seen.keys.shape[2])}


@closed_form("discrete_mamba2")
def softplus_alone(seen: Observed, **options: object) -> dict[str, np.ndarray]:
    """softplus(decay_bias) is the step."""
    return {"decay_bias": np.log(np.expm1(step(seen)))}


@closed_form("rwkv6")
def exponential_of(seen: Observed, **options: object) -> dict[str, np.ndarray]:
    """exp(decay_bias) is the step, for each feature of a head."""
    return {"decay_bias": np.repeat(np.log(step(seen)), seen.keys.shape[2])}


@closed_form("gla")
def sigmoid_of(seen: Observed, *, temperature: float, **options: object) -> dict[str, np.ndarray]:
    """-logsigmoid(decay_bias) / temperature is the step, for each feature of a head."""
    bias = -np.log(np.expm1(np.minimum(step(seen) * temperature, 30.0)))
    return {"decay_bias": np.repeat(bias, seen.keys.shape[2])}
