"""The text form of graphs, written: the same text for the same graph, in every process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .attributes import REQUIRED, attr_key
from .core import Value
from .graph import Graph


def print_graph(graph: Graph, *, sources: bool = False, indent: str = "") -> str:
    """The text of `graph`; `sources=True` adds `// where` and `// via` comments."""
    names: dict[Value, str] = {v: f"%{v.op.attrs['name']}" for v in graph.inputs}
    header = ", ".join(f"{names[v]}: {v.type}" for v in graph.inputs)
    facts = ", ".join(_fact(*fact) for fact in graph.facts)
    lines = [f"graph {graph.name}({header}){' where ' + facts if facts else ''} {{"]
    taken = set(names.values())
    numbers = (f"%{i}" for i in range(1 << 62))
    for op in graph.ops():
        if op.name == "input":
            continue
        for result in op.results:
            names[result] = next(n for n in numbers if n not in taken)
        left = ", ".join(names[r] for r in op.results)
        operands = ["none" if v is None else names[v] for v in op.inputs]
        attrs = [f"{k}={_literal(v, indent + '  ')}" for k, v in _shown(op.defn, op.attrs)]
        types = ", ".join(map(str, op.types))
        line = f"  {left} = {op.name}({', '.join(operands + attrs)}) : {types}"
        if sources and (op.source or op.via):
            line += "  // " + "; ".join(filter(None, (op.source, op.via and f"via {op.via}")))
        lines.append(line)
    for name, value in graph.updates.items():
        lines.append(f"  update {json.dumps(name)} = {names[value]}")
    lines.append(f"  return {', '.join(names[v] for v in graph.outputs)}".rstrip())
    return "\n".join(f"{indent if i else ''}{line}" for i, line in enumerate([*lines, "}"]))


def _shown(defn: Any, attrs: Any) -> Iterator[tuple[str, Any]]:
    for attr in defn.attrs:
        value = attrs[attr.name]
        if attr.default is REQUIRED or attr_key({"": value}) != attr_key({"": attr.default}):
            yield attr.name, value


def _fact(name: str, low: int, high: int | None) -> str:
    return f"{name} >= {low}" if high is None else f"{low} <= {name} <= {high}"


def _literal(value: Any, indent: str = "") -> str:
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple):
        inside = ", ".join(_literal(v, indent) for v in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, Graph):
        return print_graph(value, indent=indent)
    return str(value)
