"""IR -> something that runs: eager torch, Inductor, MLIR."""

from . import eager
from .base import BACKENDS, Backend, Executable, backend, register

__all__ = ["BACKENDS", "Backend", "Executable", "backend", "eager", "register"]
