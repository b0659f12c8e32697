"""IR -> something that runs: eager torch, Inductor, MLIR."""

from . import eager, mlir
from .base import BACKENDS, Backend, Executable, backend, register

__all__ = ["BACKENDS", "Backend", "Executable", "backend", "eager", "mlir", "register"]
