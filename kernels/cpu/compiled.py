"""Row loops compiled by Numba: what takes NumPy several passes over memory takes one pass in registers.

A compiled function runs without the interpreter lock, on one thread, over the block that its program hands it.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from pathlib import Path

import llvmlite.ir as ir
import numba
import numpy as np
from numba import types
from numba.core.compiler import Compiler
from numba.extending import intrinsic, overload, register_jitable

# Everything of LLVM's fast-math but "no NaN" and "no infinity": those would let a NaN vanish.
FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}


@functools.cache
def _cache_folder() -> str:
    """Where machine code is kept, by a hash of the sources: Numba itself only watches the caller's own file."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    root = os.environ.get("LOAM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loam"
    return str(Path(root) / "kernels" / digest.hexdigest()[:16])


class _NoAlias(Compiler):
    """Tells LLVM that array arguments do not overlap, which spares every short loop a comparison of all pointers."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.state.flags.noalias = True


def compiled(function):
    """Compile a loop over rows; the machine code is kept between runs.

    An array that the function writes may overlap no other argument.
    """
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, os.environ.get("NUMBA_CACHE_DIR") or _cache_folder()
    try:
        return numba.njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True, pipeline_class=_NoAlias)(function)
    finally:
        numba.config.CACHE_DIR = before


def inlined(function):
    """A helper that compiled loops call and that is compiled into them."""
    return register_jitable(fastmath=FAST, error_model="numpy")(function)


@intrinsic
def maximum(_typing, a, b):
    """The larger of two floats, in a form LLVM vectorises as a reduction.

    A NaN may lose: for use where it shows later, as the top of a softmax.
    """

    def generate(_context, builder, _signature, arguments):
        kind = arguments[0].type
        signature = ir.FunctionType(kind, [kind, kind])
        function = builder.module.declare_intrinsic("llvm.maxnum", [kind], signature)
        return builder.call(function, arguments, fastmath=("nnan", "nsz"))  # infinities must stay what they are

    return a(a, a), generate


@intrinsic
def _power_of_two(_typing, exponent):
    """2**exponent for a whole float32 exponent in [-126, 127], made from its bits."""

    def generate(_context, builder, _signature, arguments):
        i32 = ir.IntType(32)
        biased = builder.add(builder.fptosi(arguments[0], i32), ir.Constant(i32, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(i32, 23)), ir.FloatType())

    return types.float32(types.float32), generate


_f = np.float32
_LOG2_E, _LN2_HIGH, _LN2_LOW = _f(1.4426950408889634), _f(0.693359375), _f(-2.12194440e-4)
# Minimax polynomial for e**r on [-ln2/2, ln2/2]: Cephes, expf.c.
_C2, _C3, _C4 = _f(5.0000001201e-1), _f(1.6666665459e-1), _f(4.1665795894e-2)
_C5, _C6, _C7 = _f(8.3334519073e-3), _f(1.3981999507e-3), _f(1.9875691500e-4)
_LOWEST, _HIGHEST = _f(-87.0), _f(88.0)


def exp(x):
    """e**x. In float32 a polynomial after range reduction, within 2 units in the last place; arguments are
    clamped to [-87, 88], so tiny results bottom out at 1.6e-38 instead of 0. NaN stays NaN."""
    return np.exp(x)


@overload(exp, jit_options={"fastmath": FAST, "error_model": "numpy"})
def _exp_overload(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    def exp32(x):
        clamped = _LOWEST if x < _LOWEST else x
        clamped = _HIGHEST if clamped > _HIGHEST else clamped
        n = np.floor(clamped * _LOG2_E + _f(0.5))
        r = clamped - n * _LN2_HIGH
        r = r - n * _LN2_LOW
        p = _C7 * r + _C6
        p = p * r + _C5
        p = p * r + _C4
        p = p * r + _C3
        p = p * r + _C2
        p = p * r * r + r + _f(1.0)
        return p * _power_of_two(n)

    return exp32
