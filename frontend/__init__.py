"""torch -> IR: capture, and the module that stands in for the original."""

from .capture import Captured, capture
from .lazy import LazyModule
from .module import OptimizedModule
from .signature import Signature

__all__ = ["Captured", "LazyModule", "OptimizedModule", "Signature", "capture"]
