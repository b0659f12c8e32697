"""What attention does at sites of a model on the user's batches: what closed forms of weights start from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .backends import backend
from .calibration import Batch
from .frontend import Captured
from .ir import OPS, Graph, Value, building
from .ir.dims import evaluate
from .ir.interpret import bind
from .ir.ops.activation import wide
from .passes import find_sites
from .passes.masks import classify_op
from .passes.recipes.observed import Observed

KEYS = 4096
"""How many keys of a site are kept for closed forms."""

LOOKED = 24
"""How many batches are looked at."""


def observe(
    captured: Captured, graph: Graph, indices: Sequence[int], batches: Sequence[Batch], *, seed: int = 0
) -> dict[int, Observed]:
    """By index in `find_sites(graph)`, what attention did there on some of the batches.

    A site is made to attend to three values of each key j: 1, j and j^2. The gradient of the first is the
    attention that each key received, and the results are the moments of where a query looks: the matrix
    itself is never made, and this takes the memory that the model's own attention takes.
    """
    ops = [find_sites(graph)[i].op for i in indices]
    probes: list[Value] = []
    looked: list[Value] = []
    operands: list[Value] = []
    padding: list[Value | None] = []
    with building():
        for at, op in enumerate(ops):
            q, k, v = (wide(x) for x in op.args[:3])
            probes.append(OPS["input"](name=f"probe_{at}", type=v.type.with_(shape=(*v.shape[:3], 3))))
            looked.append(OPS["attention"](q, k, probes[-1], *op.inputs[3:], **op.attrs))
            operands += [q, k]
            padding.append(classify_op(op).padding if q.shape[2] == k.shape[2] else None)
        kept = [x for x in padding if x is not None]
        whole = Graph(graph.name, (*graph.inputs, *probes), (*looked, *operands, *kept), facts=graph.facts)
    run = backend("eager").compile(whole, captured.modules)
    own = {name: x.detach() for name, x in captured.tensors.items()}
    draw = torch.Generator().manual_seed(seed)
    found = [_Seen() for _ in ops]
    for batch in batches[:LOOKED]:
        env = bind({value: x.shape for value, x in zip(graph.inputs, batch.inputs, strict=True)})
        places = [_positions([evaluate(d, env) for d in p.shape], batch) for p in probes]
        results, _ = run([*batch.inputs, *places], own)
        outs, rest = results[: len(ops)], iter(results[len(ops) :])
        pairs = [(next(rest), next(rest)) for _ in ops]
        rows = [None if x is None else next(rest)[:, 0, 0] for x in padding]
        shares = [out[..., 0] if r is None else out[..., 0] * r[:, None] for out, r in zip(outs, rows)]
        masses = torch.autograd.grad(torch.stack([x.sum() for x in shares]).sum(), places)
        for i, op in enumerate(ops):
            causal = classify_op(op).causal
            found[i].add(*pairs[i], masses[i][..., 0], outs[i].detach(), rows[i], causal, draw)
    return {index: seen.observed(op.attrs["scale"]) for index, seen, op in zip(indices, found, ops)}


def _positions(shape: Sequence[int], batch: Batch) -> Tensor:
    """[b, g, m, 3]: 1, j and j^2, of which gradients are wanted; j from -1/2 to 1/2, so that squares keep."""
    j = torch.arange(shape[2], dtype=torch.float32) / max(shape[2], 1) - 0.5
    values = torch.stack([torch.ones_like(j), j, j * j], -1).expand(*shape)
    return values.to(next((x.device for x in batch.inputs), "cpu")).contiguous().requires_grad_()


class _Seen:
    """Sums over batches at one site."""

    def __init__(self) -> None:
        self.queries: Tensor | float = 0.0
        self.count, self.rows = 0.0, 0.0
        self.keys: list[Tensor] = []
        self.mass: list[Tensor] = []
        self.distance: Tensor | float = 0.0

    @torch.no_grad()
    def add(
        self, q: Tensor, k: Tensor, mass: Tensor, looked: Tensor, rows: Tensor | None, causal: bool,
        draw: torch.Generator,
    ) -> None:  # fmt: skip
        """q [b, h, n, d], k [b, g, m, d], mass [b, g, m], looked [b, h, n, 3], rows bool [b or 1, n]."""
        (b, h, n, d), (g, m) = q.shape, k.shape[1:3]
        keep = torch.ones(b, n, dtype=torch.bool, device=q.device) if rows is None else rows.expand(b, n)
        q = (q.double() * keep[:, None, :, None]).view(b, g, h // g, n, d)
        self.queries = self.queries + torch.einsum("bgrnd,bgrne->gde", q, q)
        self.count += float(keep.sum()) * (h // g)
        one, first, second = (looked.double() * keep[:, None, :, None]).unbind(-1)
        i = (torch.arange(n, device=q.device) + m - n).double() / max(m, 1) - 0.5
        squares = (second - 2 * i * first + i * i * one).clamp(min=0)
        off = (i * one - first).clamp(min=0) if causal else squares.sqrt()
        self.distance = self.distance + off.sum((0, 2)) * m
        self.rows += float(keep.sum())
        seen = keep if n == m else torch.ones(b, m, dtype=torch.bool, device=q.device)
        keys, mass = k.transpose(0, 1)[:, seen], mass.transpose(0, 1)[:, seen]  # [g, s, d], [g, s]
        few = torch.randperm(keys.shape[1], generator=draw)[: -(-KEYS // LOOKED)].to(keys.device)
        self.keys.append(keys[:, few].double().cpu())
        self.mass.append(mass[:, few].double().cpu())

    def observed(self, scale: float) -> Observed:
        """What the sums come to."""
        queries, distance = (
            (torch.as_tensor(x) / max(n, 1.0)).cpu().numpy()
            for x, n in ((self.queries, self.count), (self.distance, self.rows))
        )
        keys, mass = (torch.cat(x, 1).numpy() for x in (self.keys, self.mass))
        return Observed(scale, queries, keys, mass, distance)
