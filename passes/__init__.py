"""Graph -> Graph: passes, their pipeline and the linear-complexity recipes. Never imports torch."""

from .attention import attention
from .canonicalize import canonicalize
from .pipeline import BOUND, PASSES, Checker, Pass, Pipeline, Step, pass_
from .recognize import recognize
from .sites import Site, find_sites

__all__ = [
    "BOUND", "PASSES", "Checker", "Pass", "Pipeline", "Site", "Step", "attention", "canonicalize",
    "find_sites", "pass_", "recognize",
]  # fmt: skip
