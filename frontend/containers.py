"""Containers that torch cannot open by itself: dataclasses, and the caches that Hugging Face returns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

UNKNOWN = "in output, which is not a known type"
"""What torch says of a container in a result that it cannot open."""


def register_containers(tree: Any) -> None:
    """Register what a structure holds with pytree, outermost first, so that torch.export sees in."""
    while True:
        new = {type(leaf) for leaf in pytree.tree_leaves(tree)}
        dataclasses = [kind for kind in new if is_dataclass(kind) and not issubclass(kind, torch.Tensor)]
        caches = [kind for kind in new if kind not in dataclasses and is_cache(kind)]
        if not dataclasses and not caches:
            return
        for kind in dataclasses:
            torch.export.register_dataclass(kind)
        for kind in caches:
            pytree.register_pytree_node(kind, _opened, _closed, flatten_with_keys_fn=_opened_with_keys)


@contextlib.contextmanager
def registering_outputs(model: nn.Module) -> Iterator[None]:
    """A block in which the containers that forward returns are registered just before torch looks."""
    handle = model.register_forward_hook(lambda *call: register_containers(call[2]))
    try:
        yield
    finally:
        handle.remove()


def is_cache(kind: type) -> bool:
    """Whether a class is a key-value cache of transformers, or a layer of one."""
    return any(
        base.__module__ == "transformers.cache_utils" and base.__name__ in ("Cache", "CacheLayerMixin")
        for base in kind.__mro__
    )


def _opened(cache: Any) -> tuple[list[Any], Any]:
    """The attributes that may hold tensors or sizes, and (class, their names, the other attributes)."""
    state = vars(cache)
    names = [k for k, v in state.items() if isinstance(v, (torch.Tensor, torch.SymInt, list, tuple, dict))]
    rest = tuple((k, v) for k, v in state.items() if k not in names)
    return [state[name] for name in names], (type(cache), tuple(names), rest)


def _opened_with_keys(cache: Any) -> tuple[list[Any], Any]:
    children, context = _opened(cache)
    return [(pytree.GetAttrKey(name), child) for name, child in zip(context[1], children)], context


def _closed(children: Any, context: Any) -> Any:
    kind, names, rest = context
    cache = kind.__new__(kind)
    cache.__dict__.update(rest)
    cache.__dict__.update(zip(names, children))
    return cache
