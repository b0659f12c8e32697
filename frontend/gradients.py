"""Where gradients stop in a graph of Dynamo's, and what such a graph may not do to be lowered.

Lowering makes a graph functional and forgets `no_grad`: results of such regions pass through `detach`
instead, and a graph in which that would not say the same is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import guard_scalar

from ..ir import CaptureError
from .source import user_line

_FOREIGN = ("torch.autograd", "torch._functorch", "torch._C._functorch", "torch.func")
_LAYOUT = frozenset({
    "t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_", "resize_", "resize_as_",
    "set_", "as_strided_", "requires_grad_", "detach_", "register_hook", "retain_grad", "backward",
    "__set__",
})  # fmt: skip
_FIRST = ("input", "self")
_OPERATORS = frozenset({
    "iadd", "iand", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow", "irshift", "isub",
    "itruediv", "ixor", "setitem",
})  # fmt: skip


def refuse_foreign(graph: fx.Graph) -> None:
    """Raise CaptureError for calls that mean more than their forward, or that change what tensors are."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise _refused(node, f"it calls {node.target.name()}, which runs code of its own backwards")
        module = str(getattr(node.target, "__module__", None) or "")
        if module.startswith(_FOREIGN):
            raise _refused(node, f"it calls {_name(node)} of {module}, which no graph of ours can hold")
        if node.op == "call_method" and _name(node) in _LAYOUT:
            raise _refused(node, f"it calls .{_name(node)}(), which changes what a tensor is")


def check_writes(graph: fx.Graph) -> None:
    """Raise CaptureError for writes that autograd does not see to memory through which gradients flow."""
    if not torch.is_grad_enabled():
        return
    nodes = list(graph.nodes)
    flows = {memory_of(fake) for node in nodes for fake in fakes_of(node) if fake.requires_grad}
    enabled = True
    for node in nodes:
        enabled = bool(node.args[0]) if _switches(node) else enabled
        for fake in (fake for written in _written(node) for fake in fakes_of(written)):
            if memory_of(fake) in flows and not (enabled and fake.requires_grad):
                raise _refused(node, "it writes past autograd to a tensor that gradients flow through")


def settle(graph: fx.Graph, copies: dict[fx.Node, Any]) -> None:
    """Take switches of gradients out of a copied graph, and make symbolic numbers constants.

    copies: for each node of the original its copy; afterwards, where gradients stop, the `detach` of
    the copy. A number becomes the example's, which Dynamo then guards.
    """
    initially = enabled = torch.is_grad_enabled()
    reached: set[fx.Node] = set()  # results of a region that gradients would flow into
    for node, copied in list(copies.items()):
        value = node.meta.get("example_value")
        if _switches(node):
            enabled = bool(node.args[0])
            if enabled and not initially:
                raise _refused(node, "it turns gradients on, where they are off around it")
            graph.erase_node(copied)
        elif isinstance(value, (torch.SymFloat, torch.SymBool)):
            copied.replace_all_uses_with(guard_scalar(value))
            graph.erase_node(copied)
        elif initially and node.op != "placeholder":
            inputs = node.all_input_nodes
            parts = _name(node) == "getitem" and not reached.isdisjoint(inputs)
            grows = any(arg in reached or any(f.requires_grad for f in fakes_of(arg)) for arg in inputs)
            if not (parts or (grows and not enabled)):
                continue
            if not isinstance(value, torch.Tensor):
                reached.add(node)
            elif not value.requires_grad and (value.is_floating_point() or value.is_complex()):
                copies[node] = _detached(graph, copied)


def _detached(graph: fx.Graph, node: fx.Node) -> fx.Node:
    with graph.inserting_after(node):
        stopped = graph.call_method("detach", (node,))
    stopped.meta = dict(node.meta)
    node.replace_all_uses_with(stopped, delete_user_cb=lambda user: user is not stopped)
    return stopped


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes whose memory a call writes to, as far as its name and arguments tell."""
    name, target = _name(node), cast(Any, node.target)
    overload = getattr(target, "_schema", None)
    inplace = node.kwargs.get("inplace")
    if inplace is None and node.op == "call_function" and len(node.args) > 1:
        try:
            inplace = inspect.signature(target).bind(*node.args, **node.kwargs).arguments.get("inplace")
        except (TypeError, ValueError):
            inplace = False  # a builtin: it has no such flag
    if overload is not None and overload.is_mutable:
        yield from node.all_input_nodes
    elif inplace or name in _OPERATORS or (name.endswith("_") and not name.endswith("__")):
        yield from (arg for arg in node.args[:1] if isinstance(arg, fx.Node))
        yield from (arg for key, arg in node.kwargs.items() if key in _FIRST and isinstance(arg, fx.Node))
    out = node.kwargs.get("out")
    for item in out if isinstance(out, (tuple, list)) else (out,):
        if isinstance(item, fx.Node):
            yield item


def _switches(node: fx.Node) -> bool:
    return node.target is torch._C._set_grad_enabled


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))


def fakes_of(node: fx.Node) -> list[torch.Tensor]:
    """The fake tensors that a node of Dynamo's stands for."""
    value = node.meta.get("example_value")
    items = value if isinstance(value, (tuple, list)) else (value,)
    return [item for item in items if isinstance(item, torch.Tensor)]


def memory_of(fake: torch.Tensor) -> int:
    """What tells one memory from another among tensors that are alive."""
    return int(fake.untyped_storage()._cdata)


def _refused(node: fx.Node, reason: str) -> CaptureError:
    line = user_line(node.meta.get("stack_trace") or "")
    return CaptureError(reason + (f" ({line})" if line else ""))
