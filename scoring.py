"""What a recipe does to a model: to the site it stands at, and to the model's outputs.

Three figures, each dearer and truer than the one before: the error of the site's own result; what of it
reaches the outputs, to first order, for all recipes from a few backward passes; the outputs' errors with
that one site replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .backends import backend
from .budget import Tally
from .calibration import Batch
from .frontend import Captured
from .ir import OPS, Graph, Op, Value, building
from .ir import replace as replace_ops
from .ir.dims import evaluate
from .ir.interpret import bind
from .passes import find_sites
from .passes.masks import classify_op
from .reference import seeded
from .taps import Taps

Rows = Callable[[Sequence[Tensor]], Tensor | None]
"""The tokens of a batch that are no padding, bool [b, n], from its inputs; None where all count."""


def rows_of(captured: Captured, graph: Graph) -> Rows:
    """Which tokens of a batch count, by the first self-attention that is padded."""
    for site in find_sites(graph):
        if site.op.name != "attention" or site.q_len != site.k_len:
            continue
        padding = classify_op(site.op).padding
        if padding is not None:
            only = Graph("padding", graph.inputs, (padding,), facts=graph.facts)
            run = backend("eager").compile(only, captured.modules)
            return lambda inputs: run(inputs, captured.tensors)[0][0][:, 0, 0]
    return lambda inputs: None


@torch.no_grad()
def local_errors(
    taps: Taps, batches: Sequence[Batch], weights: Mapping[str, Tensor] = {}
) -> dict[int, float]:
    """||made - exact|| / ||exact|| of results of sites over all batches, by position in `taps`.

    weights: fitted ones by name. Infinite where anything is NaN, padded tokens apart.
    """
    sums: dict[int, list[float]] = {}
    for batch in batches:
        for at, tap in taps(batch.inputs, weights).items():
            off, exact = tap.squares()
            held = sums.setdefault(at, [0.0, 0.0])
            held[0] += float(off)
            held[1] += float(exact)
    return {at: _root(off, exact) for at, (off, exact) in sums.items()}


def _root(above: float, below: float) -> float:
    ratio = above / below if below > 0 else math.inf if above else 0.0
    return math.sqrt(ratio) if math.isfinite(ratio) else math.inf


class Nudges:
    """How strongly results of sites act on the outputs, to first order.

    With J the derivative of all float outputs y by a site's result, E_r[(r J d)^2] = |J d|^2 for r of
    random signs (Hutchinson 1990), and r J is one backward pass for all sites at once. That is
    the Fisher-weighted size of a difference d where y are the means of unit normal distributions.
    """

    def __init__(self, captured: Captured, graph: Graph, sites: Sequence[Op]):
        self._run = backend("eager").compile(_nudged(graph, sites), captured.modules)
        self._own = {name: x.detach() for name, x in captured.tensors.items()}
        self._inputs, self._types = graph.inputs, [op.types[0] for op in sites]

    def zeros(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Nothing added to any site."""
        env = bind({v: x.shape for v, x in zip(self._inputs, inputs, strict=True)})
        device = next((x.device for x in (*self._own.values(), *inputs)), None)
        return [
            torch.zeros(
                [evaluate(d, env) for d in t.shape], dtype=getattr(torch, t.dtype.torch), device=device
            )
            for t in self._types
        ]

    def gradients(self, inputs: Sequence[Tensor], seed: int) -> list[Tensor]:
        """r J of each site for one r, scaled so that (r J d)^2 is a share of |y|^2."""
        zeros = [zero.requires_grad_() for zero in self.zeros(inputs)]
        with torch.enable_grad():
            outputs, _ = self._run([*inputs, *zeros], self._own)
            floats = [y for y in outputs if y.is_floating_point() and y.requires_grad]
            with seeded(seed):
                signs = [torch.randint_like(y, 2).mul_(2).sub_(1) for y in floats]
            product = sum(((r * y).sum() for r, y in zip(signs, floats)), torch.zeros(()))
            size = math.sqrt(sum(float(y.detach().double().square().sum()) for y in floats)) or 1.0
            found = torch.autograd.grad(product / size, zeros, allow_unused=True)
        return [torch.zeros_like(z) if g is None else g for g, z in zip(found, zeros)]


def _nudged(graph: Graph, sites: Sequence[Op]) -> Graph:
    """`graph` with one more input for each site, which is added to the site's result."""
    with building():
        inputs = {op: OPS["input"](name=f"nudge_{i}", type=op.types[0]) for i, op in enumerate(sites)}

        def add(op: Op, operands: tuple[Value | None, ...]) -> tuple[Value] | None:
            if op not in inputs:
                return None
            return (OPS[op.name](*operands, **op.attrs) + inputs[op],)

        wider = Graph(graph.name, (*graph.inputs, *inputs.values()), graph.outputs, facts=graph.facts)
        return replace_ops(wider, add, via="nudge")


def first_order(
    taps: Taps,
    nudges: Nudges,
    sites: Sequence[int],
    batches: Sequence[Batch],
    weights: Mapping[str, Tensor] = {},
    probes: int = 2,
) -> dict[int, float]:
    """The relative error of the outputs that each position of `taps` would cause, to first order.

    sites: for each position of `taps` the place of its site among those of `nudges`.
    """
    sums: dict[int, float] = {}
    for batch in batches:
        with torch.no_grad():
            found = taps(batch.inputs, weights)
        for probe in range(probes):
            gradients = nudges.gradients(batch.inputs, probe)
            for at, tap in found.items():
                acts = (gradients[sites[at]] * (tap.made - tap.exact)).double().flatten(1).sum(1)
                sums[at] = sums.get(at, 0.0) + float(acts.square().sum()) / probes
    return {at: math.sqrt(total / len(batches)) for at, total in sums.items()}


@torch.no_grad()
def errors_of(
    original: nn.Module, changed: nn.Module, batches: Sequence[Batch], rows: Rows, tally: Tally | None = None
) -> Tally:
    """Errors of `changed` against `original` over the batches."""
    tally = tally or Tally()
    for batch in batches:
        with seeded():
            before: Any = original(*batch.args, **batch.kwargs)
        with seeded():
            after: Any = changed(*batch.args, **batch.kwargs)
        tally.add(before, after, rows(batch.inputs))
    return tally
