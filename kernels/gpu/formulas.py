"""Formulas of one element, by the names of the contract's `elementwise`, in the dtype of their arguments.

Arguments are float32, float64 or whole numbers; a boolean is a whole number, 0 or 1. A NaN always comes through.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOG2_E_LOW = tl.constexpr(1.925963033500e-08)  # what float32's log2(e) lacks
LN_2 = tl.constexpr(0.6931471805599453)
SQRT_HALF = tl.constexpr(0.7071067811865476)
DENSITY = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
TANH_SCALE = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)
TANH_CUBIC = tl.constexpr(0.044715)


@triton.jit
def exp(x):
    """e^x = 2^(x log2 e) with the error of the product made good, which for float32 may be |x| roundings.

    Results below 2^-126 become 0.
    """
    if x.dtype == tl.float32:
        exponent = x * LOG2_E
        power = tl.exp2(exponent)
        missing = (tl.fma(x, LOG2_E, -exponent) + x * LOG2_E_LOW) * LN_2
        return tl.where(tl.abs(exponent) < 126, power + power * missing, power)
    else:
        return tl.exp(x)


@triton.jit
def sigmoid(x):
    return 1 / (1 + exp(-x))


@triton.jit
def tanh(x):
    """Near 0 in float32 the polynomial of Cephes (tanhf.c), as 1 - 2 / (e^2x + 1) cancels there."""
    far = 1 - 2 / (exp(2 * x) + 1)
    if x.dtype == tl.float32:
        square = x * x
        series = -5.70498872745e-3
        series = series * square + 2.06390887954e-2
        series = series * square - 5.37397155531e-2
        series = series * square + 1.33314422036e-1
        series = series * square - 3.33332819422e-1
        return tl.where(tl.abs(x) < 0.625, x + x * square * series, far)
    else:
        return far


@triton.jit
def sqrt(x):
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def div(a, b):
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def pow(x, exponent):
    """By a logarithm in float64, as in float32 its error times the exponent would show."""
    if x.dtype.is_floating():
        wide, power = x.to(tl.float64), exponent.to(tl.float64)
        size = tl.where(tl.abs(wide) == 1, 1.0, tl.exp(power * tl.log(tl.abs(wide))))
        half, whole = power * 0.5, tl.floor(power) == power
        signed = tl.where(whole & (tl.floor(half) != half), -size, size)
        signed = tl.where(whole | (wide == -float("inf")), signed, float("nan"))
        return tl.where(power == 0, 1.0, tl.where(wide < 0, signed, size)).to(x.dtype)
    else:
        result = exponent * 0 + 1
        factor = x
        for _ in tl.static_range(x.dtype.primitive_bitwidth - 1):
            result = tl.where((exponent & 1) != 0, result * factor, result)
            factor = factor * factor
            exponent = exponent >> 1
        return tl.where(exponent < 0, 0, result)


@triton.jit
def larger(a, b):
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def smaller(a, b):
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def gelu_tanh_sigmoid(x):
    """(1 + tanh(u)) / 2 = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return sigmoid(x * TANH_SCALE * (1 + x * x * TANH_CUBIC))


@triton.jit
def of_one(NAME: tl.constexpr, x):
    if NAME == "neg":
        return -x
    elif NAME == "abs":
        return tl.abs(x)
    elif NAME == "exp":
        return exp(x)
    elif NAME == "log":
        return tl.log(x)
    elif NAME == "sqrt":
        return sqrt(x)
    elif NAME == "tanh":
        return tanh(x)
    elif NAME == "sigmoid":
        return sigmoid(x)
    elif NAME == "relu":
        return tl.where(x < 0, 0, x)
    elif NAME == "relu_squared":
        return tl.where(x < 0, 0, x * x)
    elif NAME == "silu":
        return x * sigmoid(x)
    elif NAME == "gelu":
        return 0.5 * x * (1 + tl.erf(x * SQRT_HALF))
    elif NAME == "gelu_tanh":
        return x * gelu_tanh_sigmoid(x)
    else:
        tl.static_assert(NAME == "logical_not")
        return x == 0


@triton.jit
def of_two(NAME: tl.constexpr, a, b):
    """Of gradients, `a` is that of the result, and `b` the argument or, as in sqrt_backward, the result."""
    if NAME == "add":
        return a + b
    elif NAME == "sub":
        return a - b
    elif NAME == "mul":
        return a * b
    elif NAME == "div":
        return div(a, b)
    elif NAME == "pow":
        return pow(a, b)
    elif NAME == "maximum":
        return larger(a, b)
    elif NAME == "minimum":
        return smaller(a, b)
    elif NAME == "eq":
        return a == b
    elif NAME == "ne":
        return a != b
    elif NAME == "lt":
        return a < b
    elif NAME == "le":
        return a <= b
    elif NAME == "gt":
        return a > b
    elif NAME == "ge":
        return a >= b
    elif NAME == "square_difference":
        return (a - b) * (a - b)
    elif NAME == "abs_backward":
        return tl.where(b > 0, a, tl.where(b < 0, -a, a * b))
    elif NAME == "sqrt_backward":
        return 0.5 * div(a, b)
    elif NAME == "tanh_backward":
        return a * (1 - b * b)
    elif NAME == "sigmoid_backward":
        return a * b * (1 - b)
    elif NAME == "relu_backward":
        return tl.where(b > 0, a, 0)
    elif NAME == "relu_squared_backward":
        return tl.where(b < 0, 0, 2 * a * b)
    elif NAME == "silu_backward":
        weight = sigmoid(b)
        return a * weight * (1 + b * (1 - weight))
    elif NAME == "gelu_backward":
        return a * (0.5 * (1 + tl.erf(b * SQRT_HALF)) + b * DENSITY * exp(-0.5 * b * b))
    else:
        tl.static_assert(NAME == "gelu_tanh_backward")
        weight = gelu_tanh_sigmoid(b)
        return a * weight * (1 + (1 - weight) * TANH_SCALE * b * (1 + b * b * 3 * TANH_CUBIC))


@triton.jit
def of_three(NAME: tl.constexpr, a, b, c):
    if NAME == "where":
        return tl.where(a != 0, b, c)
    elif NAME == "clamp":
        return smaller(larger(a, b), c)
    elif NAME == "divisor_backward":
        return -div(a * b, c)
    elif NAME == "pow_base_backward":
        return tl.where(c == 0, 0.0, a * c * pow(b, c - 1))
    elif NAME == "larger_backward":
        return a * tl.where(b > c, 1.0, tl.where(b == c, 0.5, 0.0))
    elif NAME == "smaller_backward":
        return a * tl.where(b < c, 1.0, tl.where(b == c, 0.5, 0.0))
    elif NAME == "exp_shifted":
        return a * exp(b - c)
    else:
        tl.static_assert(NAME == "scaled_difference")
        return a * (b - c)


@triton.jit
def of_four(NAME: tl.constexpr, a, b, c, d):
    if NAME == "clamp_backward":
        return tl.where((b >= c) & (b <= d), a, 0)
    else:
        tl.static_assert(NAME == "pow_exponent_backward")
        return tl.where((b == 0) & (c >= 0), 0.0, a * d * tl.log(b))
