"""Graph -> Graph: passes, their pipeline and the linear-complexity recipes. Never imports torch."""

from .canonicalize import canonicalize
from .pipeline import BOUND, PASSES, Checker, Pass, Pipeline, Step, pass_

__all__ = ["BOUND", "PASSES", "Checker", "Pass", "Pipeline", "Step", "canonicalize", "pass_"]
