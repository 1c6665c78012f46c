"""Triton 3.6's interpreter, mended: what it computes in bfloat16, its NaN rules, and its speed. For tests.

It holds bfloat16 as bare 16-bit words and lets NumPy compute with those, so sums, products, comparisons and matrix
products of bfloat16 come out as noise, and it cuts off bits where hardware rounds to nearest even. Here such operands
become float32, exactly, and results are rounded. Importing this does nothing unless TRITON_INTERPRET=1.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, ReduceOps, ScanOps, TensorHandle

COMPARISONS = {np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal}
BITWISE = {np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift}
FLOAT_CASTS = "create_si_to_fp create_ui_to_fp create_fp_to_si create_fp_to_ui create_fp_ext create_fp_trunc".split()


def is_bf16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def widened(handle: TensorHandle) -> TensorHandle:
    """bfloat16 as the float32 of the same value; anything else as it is."""
    if not is_bf16(handle):
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def rounded(values: np.ndarray) -> TensorHandle:
    """Numbers as bfloat16, to nearest even; NaN stays NaN."""
    single = np.ascontiguousarray(values, dtype=np.float32)
    bits = single.view(np.uint32)
    words = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    words = np.where(np.isnan(single), np.uint16(0x7FC0), words)
    return TensorHandle(words.reshape(np.shape(values)), tl.bfloat16)


def mend() -> None:
    _mend_casts()
    _mend_arithmetic()
    _mend_reductions()
    _mend_scalars()
    _mend_speed()


def _replace(owner, name: str, replacement) -> None:
    """Set owner.name to a function that gets the original first."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **options: replacement(original, *args, **options))


def _mend_casts() -> None:
    def cast(original, self, source, kind):
        if kind.scalar != tl.bfloat16:
            return original(self, widened(source), kind)
        return source if is_bf16(source) else rounded(source.data)

    _replace(InterpreterBuilder, "cast_impl", cast)
    for name in FLOAT_CASTS:
        setattr(InterpreterBuilder, name, lambda self, source, kind: self.cast_impl(source, kind))
    InterpreterBuilder.get_bf16 = lambda self, value: rounded(np.array([value], np.float32))


def _mend_arithmetic() -> None:
    def binary(original, self, a, b, operation):
        if operation in COMPARISONS:
            return TensorHandle(operation(widened(a).data, widened(b).data), tl.int1)
        if is_bf16(a) and operation not in BITWISE:
            return rounded(operation(widened(a).data, widened(b).data))
        return original(self, a, b, operation)

    def unary(original, self, a, *operation):
        return rounded(original(self, widened(a), *operation).data) if is_bf16(a) else original(self, a, *operation)

    def fma(original, self, a, b, c):
        result = original(self, widened(a), widened(b), widened(c))
        return rounded(result.data) if is_bf16(c) else result

    def clamp(original, self, x, low, high, propagate_nan):
        x_, low_, high_ = (widened(handle).data for handle in (x, low, high))
        result = np.fmin(np.fmax(x_, low_), high_)
        if propagate_nan == tl.PropagateNan.ALL:
            result = np.where(np.isnan(x_), x_, result)
        return rounded(result) if is_bf16(x) else TensorHandle(result, x.dtype.scalar)

    def dot(original, self, a, b, *rest):
        return original(self, widened(a), widened(b), *rest)

    _replace(InterpreterBuilder, "binary_op", binary)
    for name in ("unary_op", "create_erf", "create_rsqrt"):
        _replace(InterpreterBuilder, name, unary)
    _replace(InterpreterBuilder, "create_fma", fma)
    _replace(InterpreterBuilder, "create_clampf", clamp)
    _replace(InterpreterBuilder, "create_dot", dot)
    # the hardware's plain maximum and minimum drop a NaN, the others keep it
    InterpreterBuilder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
    InterpreterBuilder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)


def _mend_reductions() -> None:
    def apply(original, self, inputs):
        wide = [tl.tensor(widened(x.handle), x.type.with_element_ty(widened(x.handle).dtype.scalar)) for x in inputs]
        results = original(self, tuple(wide))
        several = results if isinstance(results, (list, tuple)) else [results]
        return tuple(_narrowed(result, x) for result, x in zip(several, inputs))

    _replace(ReduceOps, "apply_impl", apply)
    _replace(ScanOps, "apply_impl", apply)


def _narrowed(result, x):
    """A result as bfloat16 where the input was, unless it is a position."""
    if not is_bf16(x.handle) or result.handle.dtype.scalar != tl.float32:
        return result
    kind = result.type.with_element_ty(tl.bfloat16) if result.type.is_block() else tl.bfloat16
    return tl.tensor(rounded(result.handle.data), kind)


def _mend_scalars() -> None:
    """A scalar is an array with one element; NumPy 2.4 no longer makes a number of that by itself."""

    def patch_tensor(original, tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    _replace(interpreter, "_patch_lang_tensor", patch_tensor)


def _mend_speed() -> None:
    """Turn Triton's language into NumPy's once, not at every launch and every call of a helper."""
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    patched = set()

    def patch(original, function):
        languages = {value.__name__ for value in function.__globals__.values() if value is tl or value is tl.core}
        if not languages <= patched:
            patched.update(languages)
            original(function)
        return interpreter._LangPatchScope()

    def run(original, self, *args, **options):
        with np.errstate(all="ignore"):
            return original(self, *args, **options)

    _replace(interpreter, "_patch_lang", patch)
    _replace(GridExecutor, "__call__", run)


if triton.knobs.runtime.interpret:
    mend()
