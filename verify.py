"""Holding a rewritten graph against the one it came from: both run in float64 on the examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .backends import backend
from .ir import Graph
from .learned import initial
from .reference import Widen, double, seeded


class Verifier:
    """Runs graphs in float64 on the example inputs: the `check` of a pipeline run.

    inputs: example tensors in the order of the graph's inputs. tensors: weights by param name.
    Narrow floats are copied to float64 once, and inputs are cloned for every run because a graph
    may update them. Random ops draw from the same seed in every run.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        tensors: Mapping[str, Tensor],
        modules: Mapping[str, nn.Module],
    ):
        self.inputs = [double(x) for x in inputs]
        self.tensors = {name: double(x) for name, x in tensors.items()}
        self.modules = modules

    def give(self, weights: Mapping[str, Tensor]) -> None:
        """Weights that recipes add, by name, to run with instead of what they start from."""
        self.tensors |= {name: double(x) for name, x in weights.items()}

    @torch.no_grad()
    def __call__(self, graph: Graph) -> list[Any]:
        """Outputs, then updates by name, as numpy arrays."""
        run = backend("eager").compile(graph, self.modules)
        with seeded(), Widen():
            tensors = self.tensors | initial(graph, self.tensors)
            outputs, updates = run([x.clone() for x in self.inputs], tensors)
        results = [*outputs, *(updates[name] for name in sorted(updates))]
        return [x.detach().cpu().numpy() for x in results]
