"""MLIR: a graph as torch-dialect text, and through torch-mlir and LLVM as results on the CPU.

    text = emit(graph)                  # torch alone is needed; torch-mlir is for what follows
    module = lower_to_linalg(text)
    run = compile_cpu(module)

`backend("mlir")` does all three for each set of sizes it is called with.
"""

from .backend import MLIR, MLIRExecutable
from .emit import emit
from .runner import MLIRError, compile_cpu, lower_to_linalg

__all__ = ["MLIR", "MLIRError", "MLIRExecutable", "compile_cpu", "emit", "lower_to_linalg"]
