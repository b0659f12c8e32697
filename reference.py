"""The float64 run of a model: what every error is measured against."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})


class Widen(TorchDispatchMode):
    """Inside this, narrow floats become float64 wherever a model makes or meets them.

    Casts (`x.float()`, `softmax(..., dtype=torch.float32)`), tensors made in forward
    (`torch.zeros(n)`), and weights that `Module.double()` does not know of. Views and in-place ops
    keep the tensors they are given, so that what is written through them stays written.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        fixed = schema.is_mutable or any(r.alias_info is not None for r in schema.returns)
        tensors = 0

        def wide(x: Any) -> Any:
            nonlocal tensors
            if isinstance(x, torch.Tensor):
                tensors += 1
                return x if fixed else double(x)
            return torch.float64 if isinstance(x, torch.dtype) and x in NARROW else x

        args, kwargs = tree_map(wide, args), tree_map(wide, kwargs or {})
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype is torch.float64:
            return grouped_mm(*args, **kwargs)
        result = func(*args, **kwargs)
        return result if tensors or fixed else tree_map(double, result)


def double(x: Any) -> Any:
    """A tensor of narrow floats in float64, anything else as it is."""
    narrow = isinstance(x, torch.Tensor) and x.dtype in NARROW
    return x.detach().to(torch.float64) if narrow else x


def grouped_mm(
    rows: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor | None = None, *_: Any, **__: Any
) -> torch.Tensor:
    """rows [n, k] times matrices [g, k, m], group i up to row ends[i]; torch's own takes no float64."""
    if ends is None or rows.dim() != 2 or matrices.dim() != 3:
        raise NotImplementedError(
            f"the float64 run of a model knows grouped_mm for rows [n, k] in groups and matrices [g, k, m], "
            f"not for {list(rows.shape)} and {list(matrices.shape)}; compare against the model itself instead"
        )
    made = rows.new_zeros(rows.shape[0], matrices.shape[-1])
    start = 0
    for matrix, end in zip(matrices, ends.tolist()):
        made[start:end] = rows[start:end] @ matrix
        start = end
    return made


@contextlib.contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """A block whose random draws are the same every time; the caller's generators go on after it.

    By the generators themselves: torch.manual_seed writes to tables of the tracer on its way, and
    would break a capture that runs in another thread.
    """
    generators = (torch.default_generator, *torch.cuda.default_generators)
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@torch.no_grad()
def in_float64(model: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The result of a float64 copy of `model` on float64 copies of the inputs."""
    wide = copy.deepcopy(model)
    if isinstance(wide, nn.Module):
        wide = wide.double()
    args, kwargs = tree_map(lambda x: double(x.clone()) if isinstance(x, torch.Tensor) else x, (args, kwargs))
    with seeded(), Widen():
        return wide(*args, **kwargs)
