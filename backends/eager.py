"""Eager torch: each op becomes one aten call of a printed `torch.fx` graph.

An op is lowered to the first overload of `OpDef.aten` whose schema fits: attributes by name, operands
in order, constants as Python numbers where torch takes them. A composite without a fitting overload
is lowered through its body. Symbolic dims are computed from the inputs' shapes inside the graph, so
one compiled graph serves every size, and Dynamo can trace it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..ir.errors import BackendError
from ..ir.graph import Graph
from ..ir.interpret import bind
from . import spellings  # noqa: F401  (fills the table of custom lowerings)
from .base import register
from .legalise import legalise
from .lowering import Lowering


class EagerExecutable:
    """A compiled graph: `(inputs, tensors) -> (outputs, updates)`; autograd works through it.

    graph_module: the torch.fx form, `print(executable.graph_module.code)`; it takes the inputs and
    then the params, by position, and returns the outputs and then the updates.
    """

    def __init__(self, graph: Graph, graph_module: fx.GraphModule, call: Callable[..., Any] | None = None):
        self.graph, self.graph_module = graph, graph_module
        self.params = tuple(graph.params)
        self.call = graph_module.forward if call is None else call

    def __call__(
        self, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Run. Raises IRError for inputs whose shapes are not those of the graph."""
        graph = self.graph
        if len(inputs) != len(graph.inputs):
            raise BackendError(f"graph {graph.name!r} takes {len(graph.inputs)} inputs, not {len(inputs)}")
        bind({v: x.shape for v, x in zip(graph.inputs, inputs)})
        results = self.call(*inputs, *[tensors[name] for name in self.params])
        count = len(graph.outputs)
        return list(results[:count]), dict(zip(graph.updates, results[count:]))


class Eager:
    """Calls torch op by op; always available."""

    name = "eager"

    def unavailable(self) -> str | None:
        """None: it is torch itself."""
        return None

    def compile(self, graph: Graph, modules: Mapping[str, nn.Module] = {}) -> EagerExecutable:
        """`graph` as a torch.fx graph of aten calls. Raises BackendError naming an op torch lacks."""
        return EagerExecutable(graph, Lowering(legalise(graph), modules).module())


class Inductor(Eager):
    """The eager graph compiled by torch.compile; needs a C++ compiler on CPU, Triton on GPU."""

    name = "inductor"

    def __init__(self, mode: str | None = None):
        """mode: as torch.compile takes it, "max-autotune" for one."""
        self.mode = mode

    def unavailable(self) -> str | None:
        """What is missing, or None."""
        from torch._inductor import config, cpp_builder
        from torch._inductor.exc import InvalidCxxCompiler

        if torch.cuda.is_available():
            return None
        try:
            cpp_builder.get_cpp_compiler()
        except (InvalidCxxCompiler, RuntimeError, OSError):
            wanted = ", ".join(str(name) for name in config.cpp.cxx if name)
            return f"no C++ compiler ({wanted}): install one, `apt install g++`, or use 'eager'"
        return None

    def compile(self, graph: Graph, modules: Mapping[str, nn.Module] = {}) -> EagerExecutable:
        """The eager graph handed to torch.compile; compiled at the first call with each set of sizes."""
        module = Lowering(legalise(graph), modules).module()
        compiled = torch.compile(module, backend="inductor", mode=self.mode, fullgraph=True)
        return EagerExecutable(graph, module, compiled)

    def compile_for_dynamo(
        self,
        graph: Graph,
        modules: Mapping[str, nn.Module],
        inputs: Sequence[Tensor],
        tensors: Mapping[str, Tensor],
    ) -> EagerExecutable:
        """Compiled at once, as part of a compilation of Dynamo's, whose fake tensors and sizes these are."""
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        module = Lowering(legalise(graph), modules).module()
        examples = [*inputs, *(tensors[name] for name in graph.params)]
        options = list_mode_options(self.mode) if self.mode else None
        compiled: Any = compile_fx(module, examples, config_patches=options)
        return EagerExecutable(graph, module, compiled)


register(Eager())
register(Inductor())
