"""torch's own samples (`op_db`), as calls of the aten overloads that our vocabulary supports.

An OpInfo's samples are arguments of a Python function. They become calls of overloads in two ways:
every overload of the same name is tried on them, also with tensors but the first given as numbers
(this keeps composite overloads such as `linear` whole, and finds `add.Scalar`); and the function is run
under a dispatch mode that records what it is made of (this finds `convolution` and `_softmax`, which no
Python function is named after).
"""

from __future__ import annotations

import itertools
import warnings
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from subquad.frontend.aten import SUPPORTED, find_overload

PACKETS = {name.split(".")[-2] for name in SUPPORTED}

SAME_CALL = {
    "bitwise_and": ["__and__"], "bitwise_or": ["__or__"], "bitwise_xor": ["__xor__"], "trunc": ["fix"],
    "softmax": ["_softmax"], "log_softmax": ["_log_softmax"], "stack": ["_stack"],
    "select": ["select_copy"], "slice": ["slice_copy"], "split": ["split_copy"],
    "upsample_nearest": [f"upsample_nearest{n}d" for n in (1, 2, 3)],
    "norm": ["norm"], "__getitem__": ["index"],
}  # fmt: skip
"""Packets without an OpInfo of their own, called as another one's function is."""


def cases(dtype: torch.dtype) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments of overloads whose Python functions take theirs in another order, or have none."""

    def t(*shape: int) -> torch.Tensor:
        return torch.testing.make_tensor(shape, dtype=dtype, device="cpu", low=0.1, high=3)

    x, yes, i = t(2, 4, 6), torch.tensor([[True], [False]]), torch.tensor([[0, 1], [1, 0]])
    norm = (t(4), t(4), t(4), t(4))
    pools = {n: (t(2, 3, *(7,) * n), (3,) * n, (2,) * n, (1,) * n, (1,) * n, False) for n in (1, 2, 3)}
    found = {
        "batch_norm.default": [(x, *norm, False, 0.1, 1e-5, True),
                               (x, None, None, *norm[2:], False, 0.1, 1e-5, True)],
        "_native_batch_norm_legit_no_training.default": [(x, *norm, 0.1, 1e-5)],
        "instance_norm.default": [(x, *norm[:2], None, None, True, 0.1, 1e-5, True)],
        "_weight_norm.default": [(x, t(2, 1, 1), 0), (x, t(1, 1, 6), 2)],
        "dropout.default": [(x, 0.5, False), (x, 0.0, True), (x, 0.5, True)],
        "feature_dropout.default": [(x, 0.5, False)], "native_dropout.default": [(x, 0.5, False)],
        "einsum.default": [("ij,jk->ik", [t(2, 3), t(3, 4)]), ("bnd,bmd->bnm", [t(2, 3, 4), t(2, 5, 4)]),
                           ("bij->bj", [x]), ("ij,k", [t(2, 3), t(4)]), ("bnd,de->bne", [x, t(6, 5)]),
                           ("ijk->kij", [x]), ("ij,ij->", [t(2, 3), t(2, 3)]),
                           ("ij,kj->i", [t(2, 3), t(4, 3)]), ("b ... d -> b d ...", [x]),
                           ("...nd,...md->...nm", [t(2, 3, 4), t(2, 5, 4)])],
        "index.Tensor": [(x, [None, i]), (x, [i, i]), (x, [i, None, i]), (x, [None, i, i[0]])],
        "_unsafe_index.Tensor": [(x, [None, i])],
        "_unsafe_index_put.default": [(x, [i[0]], t(2, 4, 6)), (x, [i[0]], t(4, 6), True)],
        "where.ScalarOther": [(yes, t(2, 3), 2.5)], "where.ScalarSelf": [(yes, 2.5, t(2, 3))],
        "where.Scalar": [(yes, 1.5, 2.5)], "scatter.value": [(t(2, 3), 1, i, 2)],
        "one_hot.default": [(i, 4)], "numpy_T.default": [(x,), (t(3),)],
        "type_as.default": [(x, t(1)), (x, i)],
        "movedim.int": [(x, 0, 2), (x, -1, 0)], "moveaxis.int": [(x, 1, 0)], "zero.default": [(x,)],
        "meshgrid.default": [([t(2), t(3)],)], "copy.default": [(x, t(6)), (i, t(2, 2))],
        "fill.Tensor": [(x, t())], "to.dtype_layout": [(x,)], "squeeze_copy.dims": [(t(2, 1, 1), [1, 2])],
        "linalg_matmul.default": [(t(2, 3), t(3, 4))], "lift_fresh.default": [(x,)],
        "lift_fresh_copy.default": [(x,)], "detach_copy.default": [(x,)], "rand.default": [([2, 3],)],
        "bernoulli.p": [(x, 0.5)],
        "upsample_nearest1d.vec": [(t(1, 2, 3), None, [2.0])],
        "upsample_nearest2d.vec": [(t(1, 2, 3, 3), [6, 9], None)],
        "upsample_nearest3d.vec": [(t(1, 1, 2, 2, 2), None, [2.0, 1.0, 3.0])],
        "upsample_nearest1d.default": [(t(1, 2, 3), [6])],
        "upsample_nearest2d.default": [(t(1, 2, 3, 3), [6, 9])],
        "upsample_nearest3d.default": [(t(1, 1, 2, 2, 2), [4, 2, 6])],
        "max_pool1d.default": [pools[1]], "max_pool1d_with_indices.default": [pools[1]],
        "max_pool2d.default": [pools[2]], "max_pool3d.default": [pools[3]],
        "_reshape_copy.default": [(x, [8, 6])],
    }  # fmt: skip
    return found


@dataclass(frozen=True)
class Call:
    """One call of an overload, and what torch returned."""

    overload: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[torch.Tensor, ...]

    def __str__(self) -> str:
        def short(x: Any) -> Any:
            return f"{str(x.dtype)[6:]}{list(x.shape)}" if isinstance(x, torch.Tensor) else x

        return f"{self.overload}{tree_map(short, self.args)}{tree_map(short, self.kwargs) or ''}"


def results_of(overload: Any, args: Any, kwargs: Any) -> tuple[torch.Tensor, ...] | None:
    """The tensors a call returns, or None where it fails or returns something else."""
    try:
        out = overload(*args, **kwargs)
    except Exception:
        return None
    out = tuple(out) if isinstance(out, (tuple, list)) else (out,)
    tensors = [x for x in tree_leaves((args, out)) if isinstance(x, torch.Tensor)]
    dense = all(x.layout is torch.strided for x in tensors)
    return out if dense and all(isinstance(x, torch.Tensor) for x in out) else None


class Recorder(TorchDispatchMode):
    """Keeps the arguments of every supported overload that is called."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run the call; remember it if it is ours."""
        if str(function).removeprefix("aten.") in SUPPORTED:
            self.calls.append((function, *clone((args, kwargs or {}))))
        return function(*args, **(kwargs or {}))


def clone(tree: Any) -> Any:
    """The arguments as they are now: in-place ops may change them later."""
    return tree_map(lambda x: x.detach().clone() if isinstance(x, torch.Tensor) else x, tree)


@cache
def infos() -> list[tuple[Any, tuple[str, ...]]]:
    """OpInfos of interest and the packets that may take their arguments as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    found = []
    for info in op_db:
        names = {info.name, info.name.split(".")[-1], info.aten_name or ""}
        names |= {alias.name.split(".")[-1] for alias in info.aliases}
        names |= {same for name in names for same in SAME_CALL.get(name, ())}
        packets = tuple(sorted(names & PACKETS))
        if packets and not info.name.startswith(("_refs", "ops.", "sparse", "masked.")):
            found.append((info, packets))
    return found


def calls(dtype: torch.dtype, limit: int | None) -> dict[str, list[Call]]:
    """At most `limit` calls of each supported overload, from samples of one dtype."""
    found: dict[str, list[Call]] = defaultdict(list)
    seen: set[str] = set()

    def add(overload: Any, args: Any, kwargs: Any) -> None:
        name = str(overload).removeprefix("aten.")
        if name not in SUPPORTED or (limit and len(found[name]) >= limit):
            return
        results = results_of(overload, *clone((args, kwargs)))
        if results is None:
            return
        call = Call(overload, tuple(args), kwargs, results)
        if (text := str(call)) not in seen:
            seen.add(text)
            found[name].append(call)

    for name, many in cases(dtype).items():
        for given in many:
            add(find_overload(name), given, {})
    for info, packets in infos():
        if dtype not in info.supported_dtypes("cpu"):
            continue
        for sample in itertools.islice(samples(info, dtype), limit and 3 * limit):
            args, kwargs = (sample.input, *sample.args), sample.kwargs
            for overload in itertools.chain(*map(overloads, packets)):
                for given in (args, numbered(args, 1), numbered(args, 2)):
                    add(overload, given, kwargs)
            with Recorder() as recorder:
                try:
                    info.op(*clone(args), **clone(kwargs))
                except Exception:
                    continue
            for call in recorder.calls:
                add(*call)
    return found


def samples(info: Any, dtype: torch.dtype) -> Any:
    """An OpInfo's samples, as far as it can make them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # not info.sample_inputs: it walks the stack for the name of the running test, each time
            torch.manual_seed(0)
            yield from info.sample_inputs_func(info, "cpu", dtype, False)
        except Exception:
            return


@cache
def overloads(packet: str) -> tuple[Any, ...]:
    """The supported overloads of a packet."""
    names = (name for name in sorted(SUPPORTED) if name.split(".")[-2] == packet)
    return tuple(filter(None, map(find_overload, names)))


def numbered(args: Any, start: int) -> tuple[Any, ...]:
    """The arguments with the tensors from `start` on given as numbers, the first if start is 2."""
    def number(x: Any) -> Any:
        return x.flatten()[0].item() if isinstance(x, torch.Tensor) and x.numel() else x

    return tuple(number(x) if i >= start or (start == 2 and i == 0) else x for i, x in enumerate(args))


def accepts(overload: Any, args: Any, kwargs: Any) -> bool:
    """Whether torch's resolver chooses this overload for these arguments."""
    packet, _, name = str(overload).removeprefix("aten.").rpartition(".")
    try:
        chosen = torch._C._jit_resolve_packet(f"aten::{packet}", *args, **kwargs)
    except (RuntimeError, TypeError):
        return False
    return (chosen or "default") == name


def error_calls() -> list[tuple[Any, Any, Any]]:
    """Calls that torch refuses: the error inputs of every OpInfo of interest."""
    found = []
    for info, packets in infos():
        if info.error_inputs_func is None:
            continue
        try:
            errors = list(info.error_inputs_func(info, "cpu"))
        except Exception:
            continue
        for error in errors:
            sample = error.sample_input
            args, kwargs = (sample.input, *sample.args), sample.kwargs
            for overload in itertools.chain(*map(overloads, packets)):
                if accepts(overload, args, kwargs) and results_of(overload, *clone((args, kwargs))) is None:
                    found.append((overload, args, kwargs))
    return found
