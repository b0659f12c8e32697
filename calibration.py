"""The user's batches: what they may be, what is wrong with them, and which of them fit, score and verify."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .frontend.signature import Signature
from .ir import CalibrationError, CaptureError

FITS = ("none", "closed", "layers", "all")
"""How far weights that recipes add are fitted: not, in closed form, then layer by layer, then end to end."""

SHARES = (0.6, 0.2, 0.2)
"""Which part of the batches fits, scores and verifies."""


@dataclass(frozen=True)
class Calibration:
    """What measuring and fitting work with.

    batches: an iterable of inputs, each a tensor, a tuple of positional arguments, a mapping of keyword
    arguments, or a pair of both. It is read once, at the start. fit: how far what recipes learn is
    fitted, one of `FITS`. recipes: the candidates, all that fit a site if None. seed: of the split and of
    every draw. folder: where results are kept as they come, so that a killed run goes on from there.
    train: what changes end to end, the weights of "recipes" alone or, where recipes are named, also the
    model's own, by low rank ("lora") or "all". loss: of its outputs then, "relative_error", "cosine" or
    "kl"; what the budget limits if None. steps: of fitting, for each recipe and stage. seconds: the most
    that each may take; where it ends the steps, equal seeds do not give equal weights.
    """

    batches: Iterable[Any]
    fit: str = "layers"
    recipes: Sequence[str] | None = None
    seed: int = 0
    folder: str | Path | None = None
    train: str = "recipes"
    loss: str | None = None
    steps: int = 400
    seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise CalibrationError(f"fit={self.fit!r}: it is one of {', '.join(FITS)}")
        if isinstance(self.batches, (Tensor, str, bytes)) or not isinstance(self.batches, Iterable):
            raise CalibrationError(
                f"calibration batches are a {type(self.batches).__name__}; pass an iterable of inputs, as "
                "[(ids, mask), ...] or a DataLoader"
            )


@dataclass(frozen=True)
class Batch:
    """One call of the model: its arguments, and its tensors in the order of the graph's inputs."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Batches:
    """Batches by what they are for; no batch is in two of them.

    fit: for fitting. score: for comparing recipes. verify: for the promise, seen by nothing before.
    """

    fit: tuple[Batch, ...]
    score: tuple[Batch, ...]
    verify: tuple[Batch, ...]

    def digest(self) -> str:
        """Of the numbers in all batches: equal batches in the same split have the same digest."""
        made = hashlib.sha256()
        for part in (self.fit, self.score, self.verify):
            made.update(b"|")
            for x in (x for batch in part for x in batch.inputs):
                made.update(f"{x.dtype}{tuple(x.shape)}".encode())
                made.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return made.hexdigest()


def read(calibration: Calibration, signature: Signature) -> Batches:
    """The batches, each checked against what was captured, shuffled by the seed and split.

    Raises CalibrationError, naming the batch, for fewer than three batches, for one that the captured
    model does not take, and for NaN in a batch.
    """
    found = []
    try:
        for i, given in enumerate(calibration.batches):
            found.append(_checked(i, given, signature))
    except CalibrationError:
        raise
    except Exception as error:
        raise CalibrationError(
            f"the calibration batches failed after {len(found)}: {type(error).__name__}: {error}"
        ) from error
    if len(found) < 3:
        raise CalibrationError(
            f"{len(found)} calibration batches: it takes three or more, because what fits, what scores and "
            "what verifies must not be the same; cut the batches smaller, or pass more"
        )
    random.Random(calibration.seed).shuffle(found)
    score, verify = (max(1, round(share * len(found))) for share in SHARES[1:])
    return Batches(tuple(found[score + verify :]), tuple(found[:score]), tuple(found[score : score + verify]))


def _checked(i: int, given: Any, signature: Signature) -> Batch:
    args, kwargs = call_of(given)
    try:
        inputs = signature.flatten(args, kwargs)
        signature.verify(inputs, None)
    except CaptureError as error:
        raise CalibrationError(f"calibration batch {i} does not fit the model as captured: {error}") from None
    for spec, x in zip(signature.inputs, inputs, strict=True):
        if x.is_floating_point() and (bad := torch.isnan(x)).any():
            at = bad.nonzero()[0].tolist()
            raise CalibrationError(
                f"calibration batch {i}: input {spec.path!r} holds NaN at {at}; leave it out"
            )
    return Batch(args, kwargs, tuple(inputs))


def call_of(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as (args, kwargs)."""
    if isinstance(given, Mapping):
        return (), dict(given)
    if isinstance(given, (tuple, list)):
        if len(given) == 2 and isinstance(given[0], (tuple, list)) and isinstance(given[1], Mapping):
            return tuple(given[0]), dict(given[1])
        return tuple(given), {}
    return (given,), {}
