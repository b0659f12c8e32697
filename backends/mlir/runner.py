"""The torch-mlir backend: torch-dialect text to linalg, and through LLVM to results on the CPU.

A second opinion that shares no kernel with torch: the text is parsed, decomposed and lowered by
torch-mlir, turned into loops, compiled in memory by LLVM and called on numpy arrays. It is meant
for checking and for hand-off to other MLIR compilers, not for speed.

    module = lower_to_linalg(text)      # `func.func @main` over !torch.vtensor, torch.aten.* ops
    run = compile_cpu(module)           # a function from numpy arrays to numpy arrays
    (y,) = run([x])
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# numpy has no bfloat16: such tensors are given and handed back as float32 holding bfloat16 values.
_NUMPY = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "uint16", "i1": "bool",
          "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
          "complex<f32>": "complex64", "complex<f64>": "complex128"}

_TO_LINALG = ("torchdynamo-export-to-torch-backend-pipeline{extra-library=}",
              "torch-backend-to-linalg-on-tensors-backend-pipeline{allow-non-finites=true}")

_TO_LLVM = (
    # tensors to buffers; what a function returns is then owned by the caller, and nothing leaks
    "func.func(refback-generalize-tensor-pad,refback-generalize-tensor-concat)",
    "convert-shape-to-std", "func.func(linalg-generalize-named-ops,linalg-fuse-elementwise-ops)",
    "func.func(tm-tensor-bufferize)",
    "one-shot-bufferize{copy-before-write bufferize-function-boundaries "
    "function-boundary-type-conversion=identity-layout-map}", "refback-mlprogram-bufferize",
    "buffer-deallocation-pipeline", "convert-bufferization-to-memref",
    # buffers to loops
    "func.func(tm-tensor-to-loops,refback-munge-memref-copy,convert-linalg-to-loops,lower-affine)",
    "convert-scf-to-cf",
    # half precisions are computed in float32, and rounded after every operation
    "func.func(math-extend-to-supported-types{target-type=f32},"
    "arith-emulate-unsupported-floats{source-types=bf16,f16 target-type=f32},"
    "arith-expand{include-bf16=true})",
    # loops to LLVM
    "func.func(convert-math-to-llvm)", "convert-math-to-libm", "convert-complex-to-standard",
    "expand-strided-metadata", "lower-affine", "finalize-memref-to-llvm",
    "func.func(convert-arith-to-llvm)", "convert-vector-to-llvm", "convert-index-to-llvm",
    "convert-func-to-llvm", "convert-cf-to-llvm", "convert-complex-to-llvm", "convert-ub-to-llvm",
    "reconcile-unrealized-casts")


class MLIRError(RuntimeError):
    """torch-mlir refused a module. `stage` is where, `op` the operation at fault if known."""

    def __init__(self, stage: str, messages: Sequence[str], module: Any = None) -> None:
        text = "\n".join(messages)
        found = re.search(r"'([a-z_]+\.[\w.]+)'|current operation: [^\"]*\"([^\"]+)\"", text)
        self.stage, self.messages = stage, tuple(messages)
        self.op = (found.group(1) or found.group(2)) if found else None
        if re.match(r"torch\.(constant|prim|operator)", self.op or "torch.constant"):
            # a constant is never at fault: what takes it, and was left unlowered, is
            left = re.search(r'= (?:torch\.operator )?"?(torch\.aten\.\w+(\.\w+)?)', str(module))
            self.op = left.group(1) if left else self.op
        super().__init__(f"torch-mlir: {stage} failed{f' at {self.op}' if self.op else ''}: {text}")


def _torch_mlir() -> Any:
    """The `torch_mlir.ir` bindings, or an ImportError that says how to get them."""
    try:
        from torch_mlir import ir
    except ImportError as error:
        raise ImportError(f"the mlir backend needs torch-mlir ({error}); it comes with "
                          'pip install "subquad[mlir]"') from error
    return ir


def _checked(stage: str, context: Any, work: Callable[[], Any], module: Any = None) -> Any:
    """Run `work` in `context`; whatever MLIR complains about becomes one MLIRError."""
    ir, messages = _torch_mlir(), list[str]()

    def note(diagnostic: Any) -> bool:
        messages.append(f"{diagnostic.message} ({diagnostic.location})")
        messages.extend(n.message for n in diagnostic.notes)
        return True

    handler = context.attach_diagnostic_handler(note)
    context.emit_error_diagnostics = True       # to the handler; some passes report yet succeed
    try:
        with context, ir.Location.unknown():
            return work()
    except (ir.MLIRError, RuntimeError, ValueError) as error:
        raise MLIRError(stage, messages or [str(error)], module) from None
    finally:
        handler.detach()


def _run_passes(stage: str, module: Any, passes: Sequence[str]) -> None:
    from torch_mlir.passmanager import PassManager
    pipeline = f"builtin.module({','.join(passes)})"
    _checked(stage, module.context, lambda: PassManager.parse(pipeline).run(module.operation),
             module)


def lower_to_linalg(text: str) -> Any:
    """Parse a torch-dialect module and lower it to linalg on tensors.

    Result types must be written out in full (shape and dtype) on every operation; composite
    operations such as `torch.aten.softmax.int` are decomposed on the way.
    """
    ir = _torch_mlir()
    from torch_mlir.dialects import torch
    context = ir.Context()
    context.enable_multithreading(False)
    torch.register_dialect(context)
    module = _checked("parsing", context, lambda: ir.Module.parse(text))
    _run_passes("lowering to linalg", module, _TO_LINALG)
    return module


class _Memref:
    """How one tensor type crosses the boundary: its numpy dtype, its shape (-1: any size)."""

    def __init__(self, kind: Any) -> None:
        found = re.fullmatch(r"tensor<((?:(?:\d+|\?)x)*)(.+)>", str(kind))
        if found is None or found.group(2) not in _NUMPY:
            raise MLIRError("compiling", [f"cannot pass a value of type {kind} to or from numpy"])
        self.kind, self.bf16 = kind, found.group(2) == "bf16"
        self.shape = [-1 if s == "?" else int(s) for s in found.group(1).split("x")[:-1]]
        self.dtype, rank = np.dtype(_NUMPY[found.group(2)]), len(self.shape)
        fields = [("allocated", ctypes.c_void_p), ("aligned", ctypes.c_void_p),
                  ("offset", ctypes.c_int64), ("sizes", ctypes.c_int64 * rank),
                  ("strides", ctypes.c_int64 * rank)]
        self.struct = type("Memref", (ctypes.Structure,), {"_fields_": fields})

    def write(self, array: np.ndarray) -> tuple[Any, np.ndarray]:
        """A descriptor of the array, and the array it points into."""
        array = np.asarray(array)
        wanted = np.dtype("float32") if self.bf16 else self.dtype
        fits = array.ndim == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, array.shape))
        if array.dtype == np.uint8 and wanted == np.int8:       # MLIR's integers have no sign
            array = array.view(np.int8)
        if array.dtype != wanted or not fits:
            raise TypeError(f"expected {self.kind}, got {array.dtype}{list(array.shape)}")
        if self.bf16:                                           # round to nearest, ties to even
            bits = np.array(array, order="C").view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            array = np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)
        array = np.require(array, requirements=["C", "ALIGNED"])
        start, strides = array.ctypes.data, tuple(s // array.itemsize for s in array.strides)
        return self.struct(start, start, 0, array.shape, strides), array

    def read(self, memref: Any) -> np.ndarray:
        """A copy of what the descriptor points to; what functions return is contiguous."""
        array = np.empty(list(memref.sizes), self.dtype)
        source = (memref.aligned or 0) + memref.offset * array.itemsize
        ctypes.memmove(array.ctypes.data, source, array.nbytes)
        return (array.astype(np.uint32) << 16).view(np.float32) if self.bf16 else array


def compile_cpu(linalg_module: Any, opt_level: int = 1,
                ) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Compile the one public function of a linalg module for this CPU.

    LLVM's level 0 compiles five times faster than 1; large loops run three to six times slower.
    The module itself is left as it was, and so are the arrays the result is called with. Nothing
    is caught at run time: sizes that disagree where the text left them open end the process, and
    an index out of range ends it or reads memory that is not the tensor's.
    """
    ir = _torch_mlir()
    from torch_mlir.execution_engine import ExecutionEngine

    def round_in_two_steps(op: Any) -> Any:     # many a libgcc lacks float64 -> half precision
        if op.name == "arith.truncf" and [str(v.type) for v in (*op.operands, *op.results)] in (
                ["f64", "f16"], ["f64", "bf16"]):
            op.operands[0] = ir.Operation.create("arith.truncf", [ir.F32Type.get()],
                                                 [op.operands[0]], ip=ir.InsertionPoint(op)).result
        return ir.WalkResult.ADVANCE

    def prepare() -> tuple[Any, Any]:
        module = ir.Module.parse(linalg_module.operation.get_asm())
        public = [op for op in module.body.operations if op.operation.name == "func.func"
                  and "sym_visibility" not in op.attributes]
        if len(public) != 1:
            raise ValueError(f"expected one public function, found {len(public)}")
        public[0].attributes["llvm.emit_c_interface"] = ir.UnitAttr.get()
        module.operation.walk(round_in_two_steps)
        return module, public[0]

    module, function = _checked("compiling", linalg_module.context, prepare)
    name = ir.StringAttr(function.attributes["sym_name"]).value
    kind = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
    takes, gives = [_Memref(t) for t in kind.inputs], [_Memref(t) for t in kind.results]
    results = type("Results", (ctypes.Structure,),
                   {"_fields_": [(f"r{i}", m.struct) for i, m in enumerate(gives)]})
    _run_passes("lowering to LLVM", module, _TO_LLVM)
    engine = _checked("compiling", module.context, lambda: ExecutionEngine(module, opt_level))
    _checked("linking", module.context, lambda: engine.lookup(name))    # stderr has what is missing
    free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(("free", ctypes.CDLL(None)))

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        if len(arrays) != len(takes):
            raise TypeError(f"expected {len(takes)} arrays, got {len(arrays)}")
        written = [m.write(a) for m, a in zip(takes, arrays)]   # keeps the memory alive
        out = results()                                         # comes back through a pointer
        arguments = ([out] if gives else []) + [descriptor for descriptor, _ in written]
        engine.invoke(name, *(ctypes.pointer(ctypes.pointer(a)) for a in arguments))
        memrefs = [getattr(out, f"r{i}") for i in range(len(gives))]
        try:
            return [m.read(memref) for m, memref in zip(gives, memrefs)]
        finally:
            for address in {memref.allocated for memref in memrefs} - {None}:
                free(address)

    return run
