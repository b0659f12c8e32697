"""Axes by meaning: which part of which axis of a value is the batch, the heads, the queries, the keys.

An axis of a tensor is a product of atoms. Views only regroup and reorder atoms, so two values whose
axes carry the same atoms line up whatever was folded, permuted or repeated on the way, and an atom
that a value lacks is one along which it does not vary: that is how repeated heads are found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ...ir import Dim, IRError, Value
from ...ir.ops.shape import expand, permute, reshape
from ...ir.types import product


class Atom:
    """A factor of an axis; one that a view splits lives on in its parts."""

    __slots__ = ("parts", "size")

    def __init__(self, size: Dim):
        self.size = size
        self.parts: tuple[Atom, ...] = ()


Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]


def leaves(atoms: Iterable[Atom]) -> list[Atom]:
    """The atoms as they are split by now, in order."""
    found: list[Atom] = []
    for atom in atoms:
        found += leaves(atom.parts) if atom.parts else [atom]
    return found


def fresh(shape: Iterable[Dim]) -> Axes:
    """New axes for a shape, an atom each; an axis of size 1 has none."""
    return tuple(() if d == 1 else (Atom(d),) for d in shape)


@dataclass(frozen=True)
class Labelled:
    """A value with the atoms of each of its axes; their sizes multiply to the axis."""

    value: Value
    axes: Axes

    @property
    def atoms(self) -> list[Atom]:
        """Every atom it varies along, in the order of its elements."""
        return leaves(atom for axis in self.axes for atom in axis)


def aligned(part: Value, axes: Axes) -> Labelled:
    """An operand of an elementwise op whose result has `axes`: broadcast axes have no atoms."""
    lead = len(axes) - part.rank
    return Labelled(part, tuple(() if d == 1 else axes[lead + i] for i, d in enumerate(part.shape)))


def regrouped(axes: Axes, shape: Sequence[Dim]) -> Axes | None:
    """The atoms of `axes` as axes of another shape of as many elements; splits atoms to fit.

    None where a new axis would take a part of an atom that does not divide it.
    """
    rest = leaves(atom for axis in axes for atom in axis)
    rest.reverse()
    found: list[Axis] = []
    for size in shape:
        axis: list[Atom] = []
        while size != 1:
            if not rest:
                return None
            atom = rest.pop()
            times = _quotient(size, atom.size)
            if times is None:  # it reaches into the next axis
                parts = _quotient(atom.size, size)
                if parts is None:
                    return None
                atom.parts = (Atom(size), Atom(parts))
                rest.append(atom.parts[1])
                atom, times = atom.parts[0], 1
            axis.append(atom)
            size = times
        found.append(tuple(axis))
    return None if rest else tuple(found)


def _quotient(a: Dim, b: Dim) -> Dim | None:
    if b == 0:
        return None
    found = a // b
    return found if found * b == a else None


def behind(x: Labelled) -> Labelled | None:
    """What a view is a view of, with its atoms; None for what is no view, or cuts across atoms."""
    op, axes = x.value.op, x.axes
    if op.name == "permute":
        back: list[Axis] = [()] * len(axes)
        for axis, source in zip(axes, op.attrs["dims"], strict=True):
            back[source] = axis
        return Labelled(op.args[0], tuple(back))
    if op.name == "reshape":
        source = regrouped(axes, op.args[0].shape)
        return None if source is None else Labelled(op.args[0], source)
    if op.name == "expand":
        return aligned(op.args[0], axes)
    if op.name == "cat" and len(set(op.inputs)) == 1:  # repeated end to end
        part, dim = op.args[0], op.attrs["dim"]
        split = regrouped((axes[dim],), (len(op.inputs), part.shape[dim]))
        return None if split is None else Labelled(part, (*axes[:dim], split[1], *axes[dim + 1 :]))
    return None


def ahead(x: Labelled, view: Value) -> Labelled | None:
    """A view of x with its atoms; None for what is no view, or cuts across atoms."""
    op = view.op
    if op.name == "permute":
        return Labelled(view, tuple(x.axes[i] for i in op.attrs["dims"]))
    if op.name == "reshape":
        axes = regrouped(x.axes, view.shape)
        return None if axes is None else Labelled(view, axes)
    return None


def stripped(x: Labelled) -> Labelled:
    """What x is in the end a view of."""
    while (source := behind(x)) is not None:
        x = source
    return x


def arranged(x: Labelled, groups: Sequence[Iterable[Atom]], full: Collection[int] = ()) -> Value:
    """The value with one axis for each group of atoms, in that order.

    An axis none of whose atoms x varies along has size 1, unless its number is in `full`. Raises
    IRError where x varies along an atom of no group.
    """
    wanted = [leaves(group) for group in groups]
    have = x.atoms
    order = [have.index(atom) for group in wanted for atom in group if atom in have]
    if len(order) != len(have):
        raise IRError(f"{x.value!r} varies along an axis that has no place")
    value = viewed(x.value, [atom.size for atom in have])
    if order != sorted(order):
        value = permute(value, dims=order)
    spread: list[Dim] = []
    whole: list[Dim] = []
    shape: list[Dim] = []
    for i, group in enumerate(wanted):
        here = [atom in have for atom in group]
        out = i in full or (any(here) and not all(here))
        spread += [atom.size if there else 1 for atom, there in zip(group, here, strict=True)]
        whole += [atom.size if there or out else 1 for atom, there in zip(group, here, strict=True)]
        shape.append(product(atom.size for atom in group) if out or all(here) else 1)
    if spread != whole:
        value = expand(viewed(value, spread), size=whole)
    return viewed(value, shape)


def viewed(x: Value, shape: Sequence[Dim]) -> Value:
    """x reshaped, if it must be."""
    shape = tuple(shape)
    if x.op.name == "reshape" and x.shape != shape:
        x = x.op.args[0]
    return x if x.shape == shape else reshape(x, shape=shape)


def transposed(x: Value) -> Value:
    """The last two axes of x exchanged, as one transpose at most."""
    dims = (*range(x.rank - 2), x.rank - 1, x.rank - 2)
    if x.op.name == "permute":
        dims, x = tuple(x.op.attrs["dims"][i] for i in dims), x.op.args[0]
    return x if dims == tuple(range(x.rank)) else permute(x, dims=dims)
