"""The backend called "mlir": torch-mlir and LLVM, one compiled function for each set of sizes."""

from __future__ import annotations

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...ir.errors import BackendError
from ...ir.graph import Graph
from ...ir.interpret import bind
from ...ir.types import TensorType
from ..base import TORCH_DTYPE, register
from .emit import Emitter, emit, specialise
from .runner import MLIRError, compile_cpu, lower_to_linalg

KEPT = 16
"""Compiled functions kept for each graph; the one used longest ago goes first."""

Compiled = tuple[Callable[[Sequence[np.ndarray]], list[np.ndarray]], list[str], list[TensorType]]
"""The function, what its index checks say, and the types of outputs and updates."""


class MLIRExecutable:
    """A graph run through MLIR: `(inputs, tensors) -> (outputs, updates)`, without gradients.

    Compiled at the first call with each set of sizes; tensors pass through numpy on the CPU, and
    results are on the device of the first input. An index out of range raises BackendError.
    """

    def __init__(self, graph: Graph, opt_level: int = 1):
        self.graph, self.opt_level = graph, opt_level
        self.params = tuple(graph.params)
        self._compiled: OrderedDict[tuple[tuple[str, int], ...], Compiled] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(
        self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Run. Raises IRError for other shapes, BackendError where gradients are wanted."""
        graph = self.graph
        if len(inputs) != len(graph.inputs):
            raise BackendError(
                f"graph {graph.name!r} takes {len(graph.inputs)} inputs, not {len(inputs)}"
            )
        given = [*inputs, *(tensors[name] for name in self.params)]
        if torch.is_grad_enabled() and any(x.requires_grad for x in given):
            raise BackendError(
                "the mlir backend computes no gradients, and an input or a weight requires them: "
                'call under torch.no_grad(), or use backend="eager"'
            )
        wanted = [v.type for v in graph.inputs] + [graph.params[name] for name in self.params]
        for x, type in zip(given, wanted, strict=True):
            if x.dtype is not TORCH_DTYPE[type.dtype]:
                raise BackendError(f"graph {graph.name!r} wants {type}, given {x.dtype}")
        env = bind({v: x.shape for v, x in zip(graph.inputs, inputs, strict=True)})
        run, checks, types = self._function(env)
        results = run([_array(x) for x in given])
        for passed, message in zip(results[len(types) :], checks, strict=True):
            if not passed:
                raise BackendError(message)
        device = given[0].device if given else torch.device("cpu")
        found = [_tensor(x, t).to(device) for x, t in zip(results, types)]
        count = len(graph.outputs)
        return found[:count], dict(zip(graph.updates, found[count:], strict=True))

    def _function(self, env: Mapping[str, int]) -> Compiled:
        key = tuple(sorted(env.items()))
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self._compile(env)
                if len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
            return self._compiled[key]

    def _compile(self, env: Mapping[str, int]) -> Compiled:
        graph = specialise(self.graph, env)
        emitter = Emitter(graph, guarded=True)
        try:
            run = compile_cpu(lower_to_linalg(emitter.text()), self.opt_level)
        except MLIRError as error:
            raise BackendError(f"graph {graph.name!r}: {error}") from error
        return run, emitter.checks, [v.type for v in (*graph.outputs, *graph.updates.values())]


class MLIR:
    """torch-mlir to LLVM on the CPU: a second opinion that shares no kernel with torch."""

    name = "mlir"

    def unavailable(self) -> str | None:
        """The pip line where torch-mlir is missing, or None."""
        if importlib.util.find_spec("torch_mlir") is not None:
            return None
        return (
            "torch-mlir is not installed: pip install 'subquad[mlir]', or in a checkout:"
            " pip install -c constraints.txt -e '.[mlir]'"
        )

    def compile(self, graph: Graph, modules: Mapping[str, nn.Module] = {}) -> MLIRExecutable:
        """`graph` to be compiled at its first call; at once where no size is open.

        Raises BackendError naming the op, and its place in the model, that MLIR cannot run.
        """
        executable = MLIRExecutable(graph)
        if not any(True for _ in graph.symbols()):
            executable._function({})
        return executable


def _array(x: Tensor) -> np.ndarray:
    x = x.detach().cpu().resolve_conj().resolve_neg()
    return x.float().numpy() if x.dtype is torch.bfloat16 else x.numpy()


def _tensor(array: np.ndarray, type: TensorType) -> Tensor:
    array = np.asarray(array)  # of no axes, numpy may have made it a scalar
    if type.dtype.kind == "u":  # the integers of MLIR have no sign
        array = array.view(f"u{type.dtype.bits // 8}")
    return torch.from_numpy(array).to(TORCH_DTYPE[type.dtype])


register(MLIR())
Graph.exporters["mlir"] = emit
