"""LazyModule: a model whose first call is its example; then it is an OptimizedModule."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from ..ir import CaptureError
from .export import FIXED, listed
from .module import OWN, OptimizedModule, with_forward
from .refusals import check_model
from .state import CONSTANTS, add_parameters, copy_state, holds

TABLES = ("_parameters", "_buffers", "_modules")


class LazyModule(nn.Module):
    """A model that is captured at its first call, with that call's arguments; then it *is* the result.

    build: `(args, kwargs) -> OptimizedModule`, called once. The parameters are copies from the start
    and stay the same objects afterwards, so an optimiser made before the first call keeps working.
    opens: whether a later call with other sizes captures again, by `build(args, kwargs, shapes)`, with
    those sizes open. Each axis is opened once; the model is kept for it.
    """

    def __init__(self, model: nn.Module, build: Callable[..., OptimizedModule], opens: bool = False):
        super().__init__()
        checked = check_model(model)
        if isinstance(checked, ExportedProgram):
            raise CaptureError("an ExportedProgram is captured already; it needs no first call")
        self.__dict__["_model"], self._build, self._opens = checked, build, opens
        self._lock = threading.Lock()
        copy_state(checked, self)
        self.__signature__ = inspect.signature(checked.forward)
        self.__class__ = with_forward(LazyModule, self.__signature__)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._lock:
            if isinstance(self, LazyModule):
                self._become(self._build(args, kwargs))
        return self._run(args, kwargs)

    def _become(self, built: OptimizedModule) -> None:
        """Turn into `built`, keeping this module's own parameters, buffers and hooks."""
        kept = {k: v for k, v in self.__dict__.items() if k.endswith(("_hooks", "_with_kwargs"))}
        kept |= {k: self.__dict__[k] for k in (*TABLES, "_lock")}
        kept["_opener"] = Opener(self._build) if self._opens else None
        for name in ("_model", "_build", "_opens"):
            del self.__dict__[name]
        share(self, built)
        self.__dict__.update({**built.__dict__, **kept})
        object.__setattr__(self, "__class__", built.__class__)

    def train(self, mode: bool = True) -> LazyModule:
        """Only the mode that the model itself is in: it decides what the first call captures."""
        if bool(mode) != self._model.training:
            call = "train" if mode else "eval"
            raise CaptureError(
                f"the first call captures the model as it is, in {'eval' if mode else 'training'} mode; call "
                f".{call}() on the model itself, then optimize(model)"
            )
        return self

    def __getattr__(self, name: str) -> Any:
        if name in OWN:
            raise AttributeError(f"{name!r} is known after the first call: nothing has been captured yet")
        return super().__getattr__(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyModule:
        new = LazyModule(self._model, self._build, self._opens)
        new.load_state_dict(self.state_dict())
        memo[id(self)] = new
        return new

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise CaptureError("a lazily optimised module cannot be pickled; save its state_dict()")

    def __repr__(self) -> str:
        return f"Lazy{type(self._model).__name__}{self.__signature__}: captured at the first call"


class Opener:
    """Captures again, with those sizes open that turned out to change from call to call.

    build: `(args, kwargs, dynamic_shapes) -> OptimizedModule`.
    """

    def __init__(self, build: Callable[..., OptimizedModule]):
        self.build, self.lock = build, threading.Lock()
        self.opened: set[tuple[str, int]] = set()
        self.current: OptimizedModule | None = None

    def __call__(
        self, module: OptimizedModule, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> OptimizedModule:
        """What runs this call: the module, or what a capture for sizes like these became.

        An axis that was opened once and is fixed nevertheless is left to the refusal of the call.
        """
        current = self.current or module
        signature = current.captured.signature
        if not signature.changed(signature.flatten(args, kwargs)):
            return current
        with self.lock:
            current = self.current or module
            signature = current.captured.signature
            inputs = signature.flatten(args, kwargs)
            changed = signature.changed(inputs)
            new = {(signature.inputs[i].path, axis) for i, axes in changed.items() for axis in axes}
            if not new or new & self.opened:
                return current
            shapes = [
                {axis: Dim.AUTO for axis, dim in enumerate(spec.type.shape)
                 if not isinstance(dim, int) or axis in changed.get(i, ())}
                for i, spec in enumerate(signature.inputs)
            ]  # fmt: skip
            with torch.no_grad():
                examples = [_many(x, changed.get(i, {})) for i, x in enumerate(inputs)]
            call = inspect.BoundArguments(signature.call, signature.spread(examples))
            try:
                built = self.build(call.args, call.kwargs, listed(signature.spread(shapes, FIXED)))
            except CaptureError as error:
                sizes = ", ".join(
                    f"axis {axis} of {signature.inputs[i].path!r} is {inputs[i].shape[axis]}, was {size}"
                    for i, axes in changed.items() for axis, size in axes.items()
                )  # fmt: skip
                raise CaptureError(f"with other sizes than before ({sizes}): {error}") from error
            self.opened |= new
            share(module, built)
            shown = {name: built.__dict__[name] for name in (*OWN, "_executable", "_places", "_frozen")}
            module.__dict__.update(shown)
            self.current = built
            return built


def _many(x: torch.Tensor, sizes: dict[int, int]) -> torch.Tensor:
    """x, repeated along axes of size 1 that had these sizes before: torch.export fixes what is 1."""
    repeats = [sizes.get(axis, 1) if size == 1 else 1 for axis, size in enumerate(x.shape)]
    return x.repeat(repeats) if max(repeats, default=1) > 1 else x


def share(module: nn.Module, built: OptimizedModule) -> None:
    """Make `built` run on the parameters and buffers of `module`, which gets those it lacks."""
    given = {name: built._tensor(name) for name in built._places}
    module._modules.pop(CONSTANTS, None)
    state = [*built.named_parameters(remove_duplicate=False), *built.named_buffers(remove_duplicate=False)]
    constants = f"{CONSTANTS}."
    missing = {n: t for n, t in state if not n.startswith(constants) and not holds(module, n)}
    add_parameters(module, missing)
    for table in TABLES:
        built.__dict__[table] = module.__dict__[table]
    built._given = given
    built._settle()
