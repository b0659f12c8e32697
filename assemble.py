"""From a captured model and a rewritten graph of it to the module that the user calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.export import ExportedProgram

from .backends import backend as backend_named
from .frontend import Captured, OptimizedModule
from .frontend.state import add_parameters
from .frontend.versions import Guard, Versions, reachable
from .ir import Graph, SubquadError
from .learned import initial


def assembled(
    model: nn.Module | ExportedProgram,
    captured: Captured,
    graph: Graph,
    *,
    backend: str = "eager",
    weights: Mapping[str, Tensor] = {},
    versions: Sequence[tuple[Guard, Graph]] = (),
    share_weights: bool = False,
) -> OptimizedModule:
    """`graph`, rewritten from `captured.graph`, as a module in the place of `model`.

    backend: the name of one. weights: tensors by the name that they have in the result's state_dict,
    copied: what a recipe's weights start from instead of their own initial values, or what the model's
    own weights are here. versions: other graphs and the sizes from which each runs instead of those
    before it. share_weights: the model's own tensors, and not copies of them.

    `log` and `sites` of the result are for the caller to set. Raises BackendError for a backend that
    cannot run the graph, SubquadError for a weight that does not fit.
    """
    own = {captured.aliases.get(name, name): tensor for name, tensor in weights.items()}
    tensors = {name: own.get(name, tensor) for name, tensor in captured.tensors.items()}
    learned: dict[str, Tensor] = {}
    for _, version in (chosen := reachable(graph, versions)):
        learned |= initial(version, tensors | learned)
    runs = [backend_named(backend).compile(version, captured.modules) for _, version in chosen]
    run = Versions(chosen, runs) if len(runs) > 1 else runs[0]
    graph = chosen[-1][1]
    fast = OptimizedModule(model, captured, graph, run, learned=learned, share_weights=share_weights)
    fast.backend = backend
    _give(fast, weights)
    return fast


def _give(fast: OptimizedModule, weights: Mapping[str, Tensor]) -> None:
    """Put copies of these in the places of the tensors of those names, tied ones with them."""
    held: dict[str, Tensor] = {
        **dict(fast.named_parameters(remove_duplicate=False)),
        **dict(fast.named_buffers(remove_duplicate=False)),
    }
    for name, tensor in weights.items():
        if name not in held:
            raise SubquadError(f"a tensor is given for {name!r}, and no weight of the module is called that")
        if name in fast.captured.literals:
            raise SubquadError(
                f"{name!r} is a constant that is computed inside the graph, so it cannot be given another "
                "value; change it in the model and capture again"
            )
        old = held[name]
        if (tensor.shape, tensor.dtype) != (old.shape, old.dtype):
            given, has = (f"{str(t.dtype)[6:]} of shape {tuple(t.shape)}" for t in (tensor, old))
            raise SubquadError(f"weight {name!r} is {has}, and cannot be given {given}")
        new = tensor.detach().to(old.device, copy=True)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        add_parameters(fast, {other: new for other, t in held.items() if t is old})
