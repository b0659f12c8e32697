"""How a call of the model maps to the graph: arguments to inputs, outputs to the returned structure."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..ir import CaptureError, Dim, Poly, TensorType
from ..ir.dims import evaluate, symbols
from ..ir.interpret import solve
from .aten import DTYPE_OF
from .refusals import leaf_name, refuse_tensor
from .symbols import Check

_PLAIN = (torch.Tensor, torch.nn.Parameter)
MISSING = object()


@dataclass(frozen=True)
class Input:
    """A tensor input: its name in the graph, its place in the call (`batch.mask`), type and device."""

    name: str
    path: str
    type: TensorType
    device: torch.device
    mutated: bool = False
    contiguous: bool = True


@dataclass(frozen=True)
class Signature:
    """The calling convention of a captured model.

    call: forward's signature. arguments: names of the arguments given at capture, in order. tree: the
    pytree of `{argument: value}`. leaves: for each leaf an input's index, or `Constant`. out_tree,
    results: for each output leaf the index of a graph output, a `Constant`, or a Dim. checks: relations
    between sizes that capture relied on. asserts: (graph output, message) of bools that must be true.
    bound: where a data-dependent symbol is read: (graph output, axis). facts: as on the graph. opened:
    whether dynamic_shapes was given. layout: the model's line that asks for strides, which then must be
    as at capture. verified: sizes that passed the checks, so that they cost nothing the second time.
    """

    call: inspect.Signature
    arguments: tuple[str, ...]
    tree: Any
    leaves: tuple[Any, ...]
    paths: tuple[str, ...]
    inputs: tuple[Input, ...]
    out_tree: Any
    results: tuple[Any, ...]
    checks: tuple[Check, ...] = ()
    asserts: tuple[tuple[int, str], ...] = ()
    bound: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    facts: tuple[tuple[str, int, int | None], ...] = ()
    opened: bool = False
    layout: str = ""
    verified: set[tuple[tuple[str, int], ...]] = field(default_factory=set, compare=False, repr=False)

    # ---- a call to graph inputs ------------------------------------------------------------------

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The tensors of a call in the order of the graph's inputs.

        Raises CaptureError when the call has other arguments, structure or plain values than capture.
        """
        given = self._arguments(args, kwargs)
        try:
            leaves = self.tree.flatten_up_to(given)
        except (ValueError, TypeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise CaptureError(f"the arguments are built differently than at capture: {reason}") from None
        tensors: list[Any] = [None] * len(self.inputs)
        for leaf, place, path in zip(leaves, self.leaves, self.paths):
            if isinstance(place, Constant):
                if not place.equals(leaf):
                    raise CaptureError(
                        f"input {path!r} was {place} at capture and is {_shown(leaf)} now; a graph fixes "
                        "what is no tensor: call optimize again with this value"
                    )
            elif isinstance(leaf, torch.Tensor):
                tensors[place] = leaf
            else:
                raise CaptureError(
                    f"input {path!r} was a tensor at capture and is {_shown(leaf)} now; call optimize "
                    "again with this value"
                )
        return tensors

    def _arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            bound = self.call.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise CaptureError(f"forward{self.call} does not take these arguments: {error}") from None
        given = {name: bound.pop(name, MISSING) for name in self.arguments}
        for name, value in given.items():
            if value is MISSING:
                parameter = self.call.parameters[name]
                if parameter.default is parameter.empty:
                    raise CaptureError(f"argument {name!r} was given at capture and is missing now")
                given[name] = parameter.default
        for name, value in bound.items():
            default = self.call.parameters[name].default
            if not Constant(default).equals(value):
                raise CaptureError(
                    f"argument {name!r} was not given at capture and is {_shown(value)} now; call "
                    "optimize again with an example of it"
                )
        return given

    # ---- what the inputs must be -----------------------------------------------------------------

    def verify(self, tensors: Sequence[torch.Tensor], device: torch.device | None) -> dict[str, int]:
        """The sizes of the symbolic dims. Raises CaptureError naming the input that does not fit.

        device: where the weights are now; inputs that were beside them at capture must follow.
        """
        env: dict[str, int] = {}
        open_dims = []
        for spec, tensor in zip(self.inputs, tensors):
            if type(tensor) not in _PLAIN or tensor.layout is not torch.strided or tensor.is_meta:
                refuse_tensor(tensor, f"input {spec.path!r}")
            type_ = spec.type
            if DTYPE_OF.get(tensor.dtype) is not type_.dtype:
                wanted = type_.dtype.torch
                raise CaptureError(
                    f"input {spec.path!r} has dtype {str(tensor.dtype)[6:]}, captured as {type_} "
                    f"({wanted}): cast it with .to(torch.{wanted}), or capture again with this dtype"
                )
            if tensor.device != (device or spec.device) and tensor.dim():
                home = f"the module is on {device}" if device else f"captured on {spec.device}"
                raise CaptureError(f"input {spec.path!r} is on {tensor.device}, {home}; move one of them")
            shape = tensor.shape
            if len(shape) != len(type_.shape):
                raise CaptureError(
                    f"input {spec.path!r} has {len(shape)} axes, shape {tuple(shape)}; captured as {type_}"
                )
            for axis, (dim, size) in enumerate(zip(type_.shape, shape)):
                if isinstance(dim, int):
                    if dim != size:
                        raise CaptureError(self._fixed(spec, axis, dim, size))
                elif (name := _bare(dim)) and name not in env:
                    env[name] = size
                else:
                    open_dims.append((spec, axis, dim, size))
            if self.layout and tensor.is_contiguous() != spec.contiguous:
                raise CaptureError(
                    f"the model asks for strides at {self.layout}, and input {spec.path!r} is "
                    f"{'not ' if spec.contiguous else ''}contiguous, other than at capture; pass it "
                    f"{'.contiguous()' if spec.contiguous else 'laid out as the example was'}"
                )
        for spec, axis, dim, size in open_dims:
            self._verify_dim(spec, axis, dim, size, env)
        sizes = tuple(env.items())
        if sizes not in self.verified:
            self._verify_sizes(env)
            if len(self.verified) < 4096:
                self.verified.add(sizes)
        return env

    def changed(self, tensors: Sequence[Any]) -> dict[int, dict[int, int]]:
        """Axes fixed at capture that have another size now: {input: {axis: size at capture}}."""
        found: dict[int, dict[int, int]] = {}
        for i, (spec, tensor) in enumerate(zip(self.inputs, tensors)):
            shape = spec.type.shape
            if len(shape) != tensor.dim():
                return {}
            for axis, (dim, size) in enumerate(zip(shape, tensor.shape)):
                if isinstance(dim, int) and dim != size:
                    found.setdefault(i, {})[axis] = dim
        return found

    def spread(self, by_input: Sequence[Any], other: Any = MISSING) -> dict[str, Any]:
        """The arguments of a call with these in the places of its tensors.

        What is no tensor becomes `other`, or stays what it was at capture.
        """
        leaves = [
            by_input[place] if not isinstance(place, Constant) else place.value if other is MISSING else other
            for place in self.leaves
        ]
        arguments: dict[str, Any] = pytree.tree_unflatten(leaves, self.tree)
        return arguments

    def _fixed(self, spec: Input, axis: int, dim: int, size: int) -> str:
        text = f"input {spec.path!r} has size {size} on axis {axis}, captured as fixed {dim}: {spec.type}; "
        if dim == 1 and self.opened:
            return text + "torch.export fixes what is 1 in the example: capture with a larger one"
        if self.opened:
            return text + "it is not among dynamic_shapes, or the model cannot do without this size"
        argument = spec.path.partition(".")[0].partition("[")[0]
        hint = f"{{{argument!r}: {{{axis}: torch.export.Dim.AUTO}}}}"
        return text + f"to open it: dynamic_shapes={hint}, or dynamic_shapes=True for every axis"

    def _verify_dim(self, spec: Input, axis: int, dim: Dim, size: int, env: dict[str, int]) -> None:
        missing = {name for name in symbols(dim)} - env.keys()
        if missing:
            name = missing.pop()
            found = None if missing else solve(dim, name, size)
            if found is None:
                raise CaptureError(f"input {spec.path!r}: axis {axis} is {dim}, which {size} cannot be")
            env[name] = found
        wanted = evaluate(dim, env)
        if wanted != size:
            sizes = ", ".join(f"{name} = {env[name]}" for name in dict.fromkeys(symbols(dim)))
            raise CaptureError(
                f"input {spec.path!r} has size {size} on axis {axis}, which is {dim} = {wanted} "
                f"({sizes} from the other inputs); captured as {spec.type}"
            )

    def _verify_sizes(self, env: dict[str, int]) -> None:
        for name, low, high in self.facts:
            if name in env and (env[name] < low or (high is not None and env[name] > high)):
                limit = f"at least {low}" if high is None else f"{low} to {high}"
                raise CaptureError(
                    f"{self._named(name)} is {env[name]}, captured for {limit}; capture again with other "
                    "bounds or an example of this size"
                )
        for check in self.checks:
            if check.symbols <= env.keys() and not check.holds(env):
                sizes = ", ".join(f"{self._named(name)} = {env[name]}" for name in sorted(check.symbols))
                at = f" (decided at {check.where})" if check.where else ""
                raise CaptureError(
                    f"the graph holds where {check}{at}, and this call has {sizes}; for such calls make "
                    "another: optimize(model, ...) with an example of these sizes"
                )

    def _named(self, name: str) -> str:
        """`s1 (axis 1 of 'ids')`: a symbol with the axes that are it."""
        where = ", ".join(
            f"axis {axis} of {spec.path!r}" for spec in self.inputs
            for axis, dim in enumerate(spec.type.shape) if _bare(dim) == name
        )  # fmt: skip
        return f"{name} ({where})" if where else name

    def verify_aliases(self, tensors: Sequence[torch.Tensor]) -> None:
        """Raise CaptureError when an input that the model writes to shares memory with another."""
        for i, spec in enumerate(self.inputs):
            if not spec.mutated:
                continue
            tensor = tensors[i]
            if _overlaps_itself(tensor):
                raise CaptureError(
                    f"input {spec.path!r} is written to, and its elements share memory (an expanded "
                    "tensor); pass .contiguous()"
                )
            for j, other in enumerate(tensors):
                if i != j and overlap(tensor, other):
                    raise CaptureError(
                        f"inputs {spec.path!r} and {self.inputs[j].path!r} share memory and the model "
                        f"writes to {spec.path!r}, which the graph keeps apart; pass a .clone() of one"
                    )

    # ---- graph outputs to the returned structure -------------------------------------------------

    def unflatten(self, outputs: Sequence[Any], env: dict[str, int]) -> Any:
        """What forward returns, from the outputs of the graph. Raises CaptureError on a false assert."""
        for index, message in self.asserts:
            if not bool(outputs[index]):
                raise CaptureError(f"an assertion of the model failed: {message}")
        leaves = []
        for item in self.results:
            if isinstance(item, Constant):
                leaves.append(item.value)
            elif isinstance(item, _Size):
                leaves.append(self._size(item.dim, outputs, env))
            else:
                leaves.append(outputs[item])
        if self.bound and self.checks:
            late = {name: outputs[i].shape[axis] for name, (i, axis) in self.bound.items()}
            self._verify_sizes({**env, **late})
        return pytree.tree_unflatten(leaves, self.out_tree)

    def _size(self, dim: Dim, outputs: Sequence[Any], env: dict[str, int]) -> int:
        late = {name: outputs[i].shape[axis] for name, (i, axis) in self.bound.items()}
        return evaluate(dim, {**env, **late})


@dataclass(frozen=True)
class Constant:
    """A value of the call or the result that is no tensor, fixed at capture."""

    value: Any

    def equals(self, other: Any) -> bool:
        """Whether a call gives the same value (True is not 1)."""
        if self.value is other:
            return True
        if isinstance(other, torch.Tensor) or type(self.value) is not type(other):
            return False
        try:
            return bool(self.value == other)
        except (TypeError, ValueError, RuntimeError):
            return False

    def __str__(self) -> str:
        return _shown(self.value)


@dataclass(frozen=True)
class _Size:
    """An output that is a size."""

    dim: Dim


def result_size(dim: Dim) -> Any:
    """The `results` entry of an output that is an integer."""
    return _Size(dim) if isinstance(dim, Poly) else Constant(dim)


def argument_paths(arguments: Mapping[str, Any]) -> list[str]:
    """`batch.mask`, `xs[0]`: a name for each leaf of the arguments, in flattening order."""
    return [leaf_name(path) for path, _ in pytree.tree_leaves_with_path(dict(arguments))]


def _bare(dim: Dim) -> str | None:
    if isinstance(dim, Poly) and len(dim.terms) == 1:
        (monomial, coefficient) = dim.terms[0]
        if coefficient == 1 and len(monomial) == 1 and monomial[0][1] == 1:
            atom = monomial[0][0]
            return atom if isinstance(atom, str) else None
    return None


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    """Whether two elements may lie at one address: an axis steps no further than the ones inside it."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the address ranges of two tensors meet."""
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr() or not (a.numel() and b.numel()):
        return False
    return _start(a) <= _end(b) and _start(b) <= _end(a)


def _start(tensor: torch.Tensor) -> int:
    return int(tensor.storage_offset()) * tensor.element_size()


def _end(tensor: torch.Tensor) -> int:
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return (int(tensor.storage_offset()) + span) * tensor.element_size()


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"

