"""Graph -> Graph: passes, their pipeline and the linear-complexity recipes. Never imports torch."""

from .canonicalize import canonicalize
from .pipeline import BOUND, PASSES, Checker, Pass, Pipeline, Step, pass_
from .recognize import recognize

__all__ = [
    "BOUND", "PASSES", "Checker", "Pass", "Pipeline", "Step", "canonicalize", "pass_", "recognize",
]  # fmt: skip
