"""Regions without gradients, inlined: what `with torch.no_grad():` in a forward means to a graph.

`run_decompositions` inlines such regions too, but forgets that gradients stop there and where the
ops came from. So this goes first: the region's nodes move into the parent, and each result passes
through `detach`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.export import ExportedProgram

_GRAD = "wrap_with_set_grad_enabled"


def inline_regions(program: ExportedProgram) -> ExportedProgram:
    """`program` without no-grad regions; itself when it has none. The argument is not changed.

    A region that holds another region keeps its form, and loses its gradient stop in decomposition.
    """
    if not any(_is_region(node) for node in program.graph.nodes):
        return program
    result = copy.copy(program)
    result._graph_module = copy.deepcopy(program.graph_module)
    result._graph_signature = copy.deepcopy(program.graph_signature)
    module = result.graph_module
    for node in list(module.graph.nodes):
        if _is_region(node):
            _inline(module, result, node)
    module.graph.eliminate_dead_code(is_impure_node=lambda _: True)
    module.graph.lint()
    module.recompile()
    return result


def _is_region(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == _GRAD


def _inline(parent: torch.fx.GraphModule, program: ExportedProgram, node: torch.fx.Node) -> None:
    enabled, reference, *operands = node.args
    assert isinstance(reference, torch.fx.Node)
    body = getattr(parent, str(reference.target))
    if any(_is_region(inner) for inner in body.graph.nodes):
        return
    graph = parent.graph
    env: dict[torch.fx.Node, Any] = {}
    results: list[Any] = []
    remaining = iter(operands)
    with graph.inserting_before(node):
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                env[inner] = next(remaining)
            elif inner.op == "output":
                results = [torch.fx.map_arg(x, env.__getitem__) for x in inner.args[0]]
            else:
                moved = graph.node_copy(inner, env.__getitem__)
                if inner.op == "get_attr":
                    moved.target = _adopt(parent, str(reference.target), body, str(inner.target))
                env[inner] = moved
        if not enabled:
            results = [_detached(graph, x) for x in results]
    for user in list(node.users):
        index: Any = user.args[1]
        replacement = results[index]
        user.replace_all_uses_with(replacement)
        program.graph_signature.replace_all_uses(user.name, replacement.name)
        graph.erase_node(user)
    graph.erase_node(node)
    if not reference.users:
        graph.erase_node(reference)


def _detached(graph: torch.fx.Graph, node: Any) -> Any:
    if not isinstance(node, torch.fx.Node) or not isinstance(node.meta.get("val"), torch.Tensor):
        return node
    stopped = graph.call_function(torch.ops.aten.detach.default, (node,))
    stopped.meta = dict(node.meta)
    return stopped


def _adopt(parent: torch.fx.GraphModule, prefix: str, body: Any, name: str) -> str:
    """Give `parent` the attribute `name` of a region's body; returns its new name."""
    new = f"{prefix}_{name.replace('.', '_')}"
    value = body
    for part in name.split("."):
        value = getattr(value, part)
    setattr(parent, new, value)
    return new
