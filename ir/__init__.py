"""The language: dims, types, ops, graphs, text, float64 meaning, rules. Never imports torch."""

from . import ops
from .attributes import Anything, Axes, Axis, Ints, Number, Order, Shape, Size
from .core import OPS, Op, OpDef, Value, build, building, rebuild
from .cost import Cost, cost
from .declare import (
    Bits,
    Boolean,
    Float,
    Integer,
    Numeric,
    Real,
    Tensor,
    composite,
    op,
)
from .dims import Dim, Poly, symbol
from .errors import (
    BackendError,
    CalibrationError,
    CaptureError,
    IRError,
    PlanError,
    RecipeError,
    SubquadError,
)
from .graph import Graph
from .interpret import evaluate, interpret
from .printer import print_graph
from .rewrite import Event, Journal, diff, isomorphic, journal, mismatch, replace, rewrite
from .rule import No, Rule, rule
from .text import parse, parse_many
from .types import DTYPES, DType, TensorType

__all__ = [
    "DTYPES", "OPS", "Anything", "Axes", "Axis", "BackendError", "Bits", "Boolean",
    "CalibrationError", "CaptureError", "Cost", "DType", "Dim", "Event", "Float", "Graph", "IRError",
    "Integer", "Ints", "Journal", "No", "Number", "Numeric", "Op", "OpDef", "Order", "Poly", "Real",
    "PlanError", "RecipeError", "Rule", "Shape", "Size", "SubquadError", "Tensor", "TensorType", "Value",
    "build", "building", "composite", "cost", "diff", "evaluate", "interpret", "isomorphic",
    "journal", "mismatch", "op", "ops", "parse", "parse_many", "print_graph", "rebuild",
    "replace", "rewrite", "rule", "symbol",
]  # fmt: skip
