"""End to end: a rewritten graph fitted to give what the original model gives, on the user's batches.

fitted = fit_end_to_end(captured, graph, linear, batches.fit, weights=layers.weights, train="lora")
fast = assembled(model, captured, linear, weights=fitted.weights)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backends import backend
from .calibration import Batch
from .descent import Progress, Run, descend, parted, size
from .fit import Fitted
from .frontend import Captured
from .ir import CalibrationError, Graph
from .learned import initial
from .passes import find_sites
from .passes.masks import classify_op

TRAINS = ("recipes", "lora", "all")
"""What may be fitted: the weights that recipes add; with low-rank changes of the model's matrices; with
all of the model's weights but tables that are looked up."""

LOSSES = ("relative_error", "cosine", "kl")

GENTLE = {"recipes": 1.0, "lora": 0.1, "all": 0.03}
"""How much smaller the steps of what is not a recipe's are than those of a recipe's weights."""


def fit_end_to_end(
    captured: Captured,
    graph: Graph,
    linear: Graph,
    batches: Sequence[Batch],
    *,
    weights: Mapping[str, Tensor] = {},
    train: str = "recipes",
    loss: str = "relative_error",
    rank: int = 8,
    seed: int = 0,
    seconds: float = 120.0,
    steps: int = 400,
    rate: float = 0.1,
    progress: Progress | None = None,
) -> Fitted:
    """Fit `linear` to the outputs of `graph`, both of the captured model, by Adam on one of `LOSSES`.

    graph: the model as it is. linear: the same with recipes in it. weights: what the recipes' weights
    start from, by name, instead of their own starts. train: one of `TRAINS`; rank: of the changes of "lora".
    The captured model is never changed: what is fitted of its weights is handed back under their
    names, whole. Outputs [b, n, ...] do not count at padded tokens. rate, seconds, steps, seed: as of
    `fit_layers`. Raises CalibrationError for an unknown `train` or `loss`, and where there is no batch.
    """
    for name, value, known in (("train", train, TRAINS), ("loss", loss, LOSSES)):
        if value not in known:
            raise CalibrationError(f"{name}={value!r}: it is one of {', '.join(known)}")
    if not batches:
        raise CalibrationError("there is no batch to fit with; pass one or more")
    began = time.perf_counter()
    run = _Whole(captured, graph, linear, weights, train, loss, rank)
    taken = 0
    if run.names[0]:
        fit, held = parted(batches, seed)
        taken = descend(
            run, fit, held, seed=seed, seconds=seconds, steps=steps, rate=rate,
            progress=progress or (lambda text: None),
        )  # fmt: skip
    found = {name: x.detach().clone() for name, x in run.weights().items()}
    before, after = ((x.get(0),) for x in (run.first, run.least))
    return Fitted((found,), before, after, {}, taken, time.perf_counter() - began)


class _Whole(Run):
    """One group: everything that is fitted, with the loss of the outputs."""

    def __init__(
        self, captured: Captured, graph: Graph, linear: Graph, weights: Mapping[str, Tensor], train: str,
        loss: str, rank: int,
    ):  # fmt: skip
        own = {name: x.detach() for name, x in captured.tensors.items()}
        added = initial(linear, own)
        start = {name: weights.get(name, x) for name, x in (own | added).items()}
        names = [name for name, x in added.items() if x.requires_grad]
        self._low: list[str] = []
        if train != "recipes":
            mine = [n for n in _trained(linear) if isinstance(captured.tensors.get(n), nn.Parameter)]
            if train == "all":
                names += mine
            else:
                self._low = [n for n in mine if start[n].ndim == 2 and min(start[n].shape) > rank]
                names += [f"{n}.{part}" for n in self._low for part in ("down", "up")]
        self._own, self._loss = start, loss
        low = _low_rank(start, self._low, rank)
        sizes = {n: (1 if n in added else GENTLE[train]) * size(x) for n, x in (own | added | low).items()}
        super().__init__({0: names}, start | low, sizes)
        padding = next(
            (p for s in find_sites(graph) if s.op.name == "attention" and (p := classify_op(s.op).padding)),
            None,
        )
        self._padded = padding is not None
        outputs = (*graph.outputs, *([padding] if padding is not None else []))
        taught = Graph(graph.name, graph.inputs, outputs, facts=graph.facts)
        eager = backend("eager")
        self._original = eager.compile(taught, captured.modules)
        self._linear = eager.compile(linear, captured.modules)
        self._given = own

    def weights(self) -> dict[str, Tensor]:
        """What is fitted as the rewritten graph reads it, by name."""
        whole = {n: x for n, x in self.live.items() if n in self._own}
        for n in self._low:
            whole[n] = self._own[n] + self.live[f"{n}.up"] @ self.live[f"{n}.down"]
        return whole

    def losses(self, batch: Batch) -> dict[int, tuple[Tensor, Tensor]]:
        with torch.no_grad():
            wanted = self._original(batch.inputs, self._given)[0]
        given = self._linear(batch.inputs, self._own | self.weights())[0]
        rows = wanted.pop()[:, 0, 0] if self._padded else None
        sums = [
            _apart(x, y, rows, self._loss)
            for x, y in zip(wanted, given, strict=True)
            if x.is_floating_point() and x.numel()
        ]
        if not sums:
            raise CalibrationError(
                "no output of the model is a tensor of floats, so nothing can be fitted to it"
            )
        above, below = (torch.stack(part).sum() for part in zip(*sums, strict=True))
        return {0: (above, below)}


def _trained(graph: Graph) -> list[str]:
    """Params of a graph but those that are looked up by rows."""
    tables = {x.op.attrs["name"] for op in graph.ops() if op.name == "embedding"
              for x in op.inputs if x is not None and x.op.name == "param"}  # fmt: skip
    return [name for name in graph.params if name not in tables]


def _low_rank(weights: Mapping[str, Tensor], names: Sequence[str], rank: int) -> dict[str, Tensor]:
    """For each matrix [o, i] a random `down` [rank, i] and an `up` [o, rank] of zeros (arXiv:2106.09685)."""
    draw, made = torch.Generator().manual_seed(0), {}
    for name in names:
        x = weights[name]
        made[f"{name}.down"] = (torch.randn(rank, x.shape[1], generator=draw) * x.shape[1] ** -0.5).to(x)
        made[f"{name}.up"] = x.new_zeros(x.shape[0], rank)
    return made


def _apart(x: Tensor, y: Tensor, rows: Tensor | None, loss: str) -> tuple[Tensor, Tensor]:
    """A sum of errors of y against x, and what it is relative to, in f32 or wider; rows: bool [b or 1, n]."""
    x, y = (t.float() if t.dtype.itemsize < 4 else t for t in (x, y))
    x, y = (t.reshape(1, -1) if t.ndim < 2 else t for t in (x, y))
    if loss == "relative_error" or x.shape[-1] < 2:
        off, base = (y - x).square().sum(-1), x.square().sum(-1)
    elif loss == "cosine":
        off = 1 - F.cosine_similarity(x, y, dim=-1)
        base = torch.ones_like(off)
    else:
        p, q = x.log_softmax(-1), y.log_softmax(-1)
        off, base = (p.exp() * (p - q)).sum(-1), torch.ones_like(p[..., 0])
    if rows is not None and x.ndim > 2 and x.shape[1] == rows.shape[1]:
        keep = rows.reshape(*rows.shape, *[1] * (x.ndim - 3))
        off, base = (torch.where(keep, t, 0.0) for t in (off, base))
    return off.sum(), base.sum()
