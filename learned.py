"""Weights that recipes add to a model: what they start from."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .backends import backend
from .ir import Graph
from .reference import seeded


@torch.no_grad()
def initial(graph: Graph, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each param of `graph` that `tensors` lacks, what its `init` computes: a Parameter if it trains.

    Random starts are drawn from a seed that is the weight's name: the same in every run.
    """
    made: dict[str, Tensor] = {}
    device = next((t.device for t in tensors.values()), torch.device("cpu"))
    for op in graph.ops():
        if op.name != "param" or op.attrs["init"] is None or op.attrs["name"] in tensors:
            continue
        name, init = op.attrs["name"], op.attrs["init"]
        run = backend("eager").compile(init)
        with seeded(zlib.crc32(name.encode())):
            (value,), _ = run([], {n: tensors[n] for n in init.params})
        value = value.to(device).clone()
        trains = value.is_floating_point() and not op.attrs["fixed"]
        made[name] = nn.Parameter(value) if trains else value
    return made
