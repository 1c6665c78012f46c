"""Activations whose formulas take NumPy many passes, as compiled loops over contiguous vectors."""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from .compiled import FAST, compiled, exp

_f = np.float32
_SQRT_HALF, _DENSITY = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)
_TANH_SCALE, _TANH_CUBIC = math.sqrt(2 / math.pi), 0.044715
# Rational minimax approximation of erf on [-4, 4], odd over even: Eigen, MathFunctionsImpl.h (generic_fast_erf_float).
_A = [_f(a) for a in (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
                      -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)]
_B = [_f(b) for b in (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
                      -1.42647390514189e-02)]
_A0, _A1, _A2, _A3, _A4, _A5, _A6 = _A
_B0, _B1, _B2, _B3, _B4 = _B


def erf(x):
    """The error function: in float32 within 4 units in the last place, in float64 the C library's."""
    return math.erf(x)


@overload(erf, jit_options={"fastmath": FAST, "error_model": "numpy"})
def _erf_overload(x):
    if x != types.float32:
        return lambda x: math.erf(x)

    def erf32(x):
        c = _f(-4) if x < _f(-4) else x
        c = _f(4) if c > _f(4) else c
        s = c * c
        top = (((((_A0 * s + _A1) * s + _A2) * s + _A3) * s + _A4) * s + _A5) * s + _A6
        bottom = (((_B0 * s + _B1) * s + _B2) * s + _B3) * s + _B4
        return c * top / bottom

    return erf32


@compiled
def _sigmoid(x, y):
    one = x.dtype.type(1)
    for i in range(x.shape[0]):
        y[i] = one / (one + exp(-x[i]))


@compiled
def _sigmoid_backward(dy, y, dx):
    one = y.dtype.type(1)
    for i in range(y.shape[0]):
        dx[i] = dy[i] * y[i] * (one - y[i])


@compiled
def _tanh_backward(dy, y, dx):
    one = y.dtype.type(1)
    for i in range(y.shape[0]):
        dx[i] = dy[i] * (one - y[i] * y[i])


@compiled
def _relu_backward(dy, y, dx):
    zero = y.dtype.type(0)
    for i in range(y.shape[0]):
        dx[i] = dy[i] if y[i] > zero else zero


@compiled
def _relu_squared(x, y):
    zero = x.dtype.type(0)
    for i in range(x.shape[0]):
        positive = zero if x[i] < zero else x[i]
        y[i] = positive * positive


@compiled
def _relu_squared_backward(dy, x, dx):
    zero, two = x.dtype.type(0), x.dtype.type(2)
    for i in range(x.shape[0]):
        dx[i] = dy[i] * two * (zero if x[i] < zero else x[i])


@compiled
def _silu(x, y):
    one = x.dtype.type(1)
    for i in range(x.shape[0]):
        y[i] = x[i] / (one + exp(-x[i]))


@compiled
def _silu_backward(dy, x, dx):
    one = x.dtype.type(1)
    for i in range(x.shape[0]):
        sigmoid = one / (one + exp(-x[i]))
        dx[i] = dy[i] * sigmoid * (one + x[i] * (one - sigmoid))


@compiled
def _gelu(x, y):
    """x times the normal distribution function (arXiv 1606.08415)."""
    one, half, root = x.dtype.type(1), x.dtype.type(0.5), x.dtype.type(_SQRT_HALF)
    for i in range(x.shape[0]):
        y[i] = half * x[i] * (one + erf(x[i] * root))


@compiled
def _gelu_backward(dy, x, dx):
    one, half, root = x.dtype.type(1), x.dtype.type(0.5), x.dtype.type(_SQRT_HALF)
    density = x.dtype.type(_DENSITY)
    for i in range(x.shape[0]):
        dx[i] = dy[i] * (half * (one + erf(x[i] * root)) + x[i] * density * exp(-half * x[i] * x[i]))


@compiled
def _gelu_tanh(x, y):
    """The tanh form, written with a sigmoid: (1 + tanh(u)) / 2 = sigmoid(2 u)."""
    one, scale, cubic = x.dtype.type(1), x.dtype.type(-2 * _TANH_SCALE), x.dtype.type(_TANH_CUBIC)
    for i in range(x.shape[0]):
        y[i] = x[i] / (one + exp(scale * x[i] * (one + cubic * x[i] * x[i])))


@compiled
def _gelu_tanh_backward(dy, x, dx):
    one, scale, cubic = x.dtype.type(1), x.dtype.type(-2 * _TANH_SCALE), x.dtype.type(_TANH_CUBIC)
    three = x.dtype.type(3)
    for i in range(x.shape[0]):
        square = cubic * x[i] * x[i]
        sigmoid = one / (one + exp(scale * x[i] * (one + square)))
        dx[i] = dy[i] * sigmoid * (one - (one - sigmoid) * scale * x[i] * (one + three * square))


LOOPS = {
    "sigmoid": _sigmoid, "sigmoid_backward": _sigmoid_backward, "tanh_backward": _tanh_backward,
    "relu_backward": _relu_backward, "relu_squared": _relu_squared, "relu_squared_backward": _relu_squared_backward,
    "silu": _silu, "silu_backward": _silu_backward, "gelu": _gelu,
    "gelu_backward": _gelu_backward, "gelu_tanh": _gelu_tanh, "gelu_tanh_backward": _gelu_tanh_backward,
}
"""name -> loop(*inputs, result) over vectors of one length."""
