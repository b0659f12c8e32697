"""OptimizedModule: what `optimize` hands back, in the original's place."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import nn
from torch.export import ExportedProgram

from ..ir import CaptureError, Graph
from .capture import Captured
from .refusals import check_model
from .signature import Signature
from .state import add_parameters, copy_state, places, unwritten
from .versions import Executable, Version, Versions

OWN = frozenset({"graph", "versions", "log", "plan", "sites", "backend", "folded", "captured"})


class OptimizedModule(nn.Module):
    """A drop-in for the captured model: same signature, output structure and state_dict names.

    The weights are its own copies (`share_weights=True` keeps the model's own tensors), so training
    one never changes the other. Every call is checked against what was captured, and a call outside
    raises CaptureError. What a model writes to its inputs and buffers is written after the call.
    Outputs that the original returns as views of inputs may be copies.

    graph: the graph that runs; where there are several, that for the largest sizes. versions: `(guard,
    graph)` of each, see `versions.py`; the first runs where no guard holds, and its own is None. log,
    sites, backend: set by `optimize`. folded: names of weights that passes computed with ahead of time,
    which must not change any more.
    """

    def __init__(
        self,
        model: nn.Module | ExportedProgram,
        captured: Captured,
        graph: Graph | None = None,
        executable: Executable | None = None,
        *,
        learned: Mapping[str, torch.Tensor] | None = None,
        folded: frozenset[str] = frozenset(),
        share_weights: bool = False,
    ):
        """executable: what runs `graph`, or `Versions`, whose last graph it is. learned: weights that passes
        added to the graphs, by dotted name; they become parameters."""
        super().__init__()
        model = check_model(model)
        if executable is None:
            raise TypeError("executable is missing: pass backends.backend(name).compile(graph, modules)")
        self.graph = captured.graph if graph is None else graph
        self.versions: tuple[Version, ...] = ((None, self.graph),)
        if isinstance(executable, Versions):
            self.versions, self.graph = executable.versions, executable.versions[-1][1]
        self.captured, self.folded = captured, frozenset(folded)
        self.log: Any = None
        self.plan: Any = None
        self.sites: Any = ()
        self.backend: Any = None
        self._opener: Callable[..., OptimizedModule] | None = None
        self._title = captured.graph.name
        self._executable = executable
        self._given = dict(captured.tensors)
        copy_state(model, self, share_weights)
        add_parameters(self, learned or {})
        self.training = captured.model_was_training
        self._settle()

    def _settle(self) -> None:
        """Work out what a call needs from the tree of weights; once, and again for a copy."""
        read = (name for _, graph in self.versions for name in graph.params)
        wanted = dict.fromkeys((*read, *(self.graph.updates.keys() - self._inputs)))
        self._places = places(self, wanted, self._given)
        self._given = {}
        watched = (*(n for n in self.folded if n in self._places), *self.captured.literals)
        self._frozen = {n: self._tensor(n)._version for n in watched}
        self.__signature__ = self._signature.call
        self.__class__ = with_forward(OptimizedModule, self._signature.call)

    @property
    def _signature(self) -> Signature:
        return self.captured.signature

    @property
    def _inputs(self) -> set[str]:
        return {spec.name for spec in self._signature.inputs}

    def _tensor(self, name: str) -> torch.Tensor:
        place = self._places.get(name)  # the graph does not read a buffer that it holds as ops
        table, key = places(self, (name,), {})[name] if place is None else place
        return table[key]

    # ---- calls -----------------------------------------------------------------------------------

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self if self._opener is None else self._opener(self, args, kwargs)
        return module._call(args, kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        signature = self._signature
        inputs = signature.flatten(args, kwargs)
        tensors = {name: table[key] for name, (table, key) in self._places.items()}
        env: dict[str, int] = {}
        if not torch.compiler.is_compiling():
            env = signature.verify(inputs, next((p.device for p in self.parameters()), None))
            if any(spec.mutated for spec in signature.inputs):
                signature.verify_aliases(inputs)
            if self._frozen:
                self._verify_frozen()
        read = (inputs, tensors)
        if written := self.graph.updates.keys():
            read = unwritten((spec.name for spec in signature.inputs), inputs, tensors, written)
        outputs, updates = self._executable(*read)
        if updates:
            outputs = self._write(inputs, tensors, outputs, updates)
        return signature.unflatten(outputs, env)

    def _write(
        self,
        inputs: list[torch.Tensor],
        tensors: dict[str, torch.Tensor],
        outputs: list[torch.Tensor],
        updates: dict[str, torch.Tensor],
    ) -> list[torch.Tensor]:
        """Carry out what the model writes; an output that is the written input becomes that input."""
        by_name = dict(zip((spec.name for spec in self._signature.inputs), inputs))
        graph, outputs = self.captured.graph, list(outputs)  # passes may find more values to be one
        for name, new in updates.items():
            if name in by_name:
                target = by_name[name]
                target.copy_(new)
                for i, value in enumerate(graph.outputs):
                    if value is graph.updates[name]:
                        outputs[i] = target
            else:
                with torch.no_grad():
                    tensors[name].copy_(new)
        return outputs

    def _verify_frozen(self) -> None:
        changed = [n for n, version in self._frozen.items() if self._tensor(n)._version != version]
        if changed:
            self._refuse_folded(changed)

    def _refuse_folded(self, names: Sequence[str]) -> NoReturn:
        raise CaptureError(
            f"the optimised graph was computed from the old values of {', '.join(sorted(names))}, which "
            "changed; load the weights into the model and call optimize again"
        )

    # ---- being a module --------------------------------------------------------------------------

    def train(self, mode: bool = True) -> OptimizedModule:
        """Only the mode that was captured: dropout and batch norm are fixed in the graph."""
        if bool(mode) != self.captured.model_was_training:
            was, call = ("training", "train") if self.captured.model_was_training else ("eval", "eval")
            other = "train" if mode else "eval"
            raise CaptureError(
                f"{self._title} was captured in {was} mode, and dropout, batch norm and the like are fixed "
                f"in its graph that way; call optimize(model.{other}(), ...) for the other mode "
                f"(gradients flow and optimisers work after .{call}(), too)"
            )
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> OptimizedModule:
        for dtype in {t.dtype: None for t in (*self.parameters(), *self.buffers())}:
            new = fn(torch.empty(0, dtype=dtype)).dtype
            if new is not dtype:
                raise CaptureError(
                    f"{self._title} was captured with {str(dtype)[6:]} weights, and its graph is typed that "
                    f"way; to run it in {str(new)[6:]} call optimize(model.to({new}), ...) on the original"
                )
        return super()._apply(fn, recurse)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As nn.Module's. Raises CaptureError for weights that passes computed with ahead of time."""
        aliases = self.captured.aliases
        touched = [name for name in state_dict if aliases.get(name, name) in self.folded]
        if touched:
            self._refuse_folded(touched)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN:  # a model may have a submodule called `graph`; ours is found first
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> OptimizedModule:
        new = OptimizedModule.__new__(OptimizedModule)
        memo[id(self)] = new
        nn.Module.__init__(new)
        shared = {*OWN, "_executable", "_title"}
        for name, value in self.__dict__.items():
            if name in shared:
                new.__dict__[name] = value
            elif name not in ("_places", "_frozen", "__signature__", "_given", "_lock", "_opener"):
                new.__dict__[name] = copy.deepcopy(value, memo)
        new._given, new._opener = {}, None
        new._settle()
        return new

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise CaptureError(
            f"an optimised {self._title} cannot be pickled: subquad neither writes nor reads pickles. Save "
            "state_dict() (safetensors keeps it well) and call optimize again after loading"
        )

    def _get_name(self) -> str:
        return f"Optimized{self._title}"

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        inputs = ", ".join(f"{s.path}: {s.type}" for s in self._signature.inputs)
        mode = "train" if self.captured.model_was_training else "eval"
        backend = f", {self.backend}" if isinstance(self.backend, str) else ""
        sizes = "".join(f", {len(g.ops())} where {guard}" for guard, g in self.versions[1:])
        return (
            f"{self._get_name()}({inputs})\n"
            f"    {len(self.versions[0][1].ops())} ops{sizes}, {count:,} parameters, {mode} mode{backend}"
        )


@functools.lru_cache(maxsize=256)
def with_forward(base: type, signature: inspect.Signature) -> type:
    """A subclass of `base` whose forward shows the model's own signature."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._run(args, kwargs)

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = list(signature.parameters.values())
    if any(p.name == "self" for p in parameters):
        own = own.replace(name="_self")
    forward.__signature__ = signature.replace(parameters=[own, *parameters])  # type: ignore[attr-defined]
    return type(base.__name__, (base,), {"forward": forward, "__module__": base.__module__})
