"""Operations element by element: NumPy over blocks, with broadcasting; compiled loops for longer formulas."""

from __future__ import annotations

import math

import numpy as np
import torch

from .. import memory
from .activation import LOOPS
from .rows import STEP, as_vector, launch_blocks, launch_rows


def _where(condition, a, b, out):
    out[...] = np.where(condition, a, b)


def _power(x, exponent, out):
    if exponent.ndim == 0 and exponent == 2:
        np.multiply(x, x, out=out)
    elif exponent.ndim == 0 and exponent == 0.5:
        np.sqrt(x, out=out)
    else:
        np.power(x, exponent, out=out)


def _power_base_backward(dy, x, exponent, out):
    """dy * p * x^(p - 1), and 0 where p is 0."""
    _power(x, exponent - exponent.dtype.type(1), out)
    np.multiply(out, exponent, out=out)
    np.multiply(out, dy, out=out)
    none = exponent == 0
    if none.any():
        np.copyto(out, 0, where=none)


def _power_exponent_backward(dy, x, exponent, y, out):
    """dy * y * log(x), and 0 where x is 0 and p is not negative."""
    np.multiply(dy, y, out=out)
    np.multiply(out, np.log(x), out=out)
    none = (x == 0) & (exponent >= 0)
    if none.any():
        np.copyto(out, 0, where=none)


def _divisor_backward(dy, y, divisor, out):
    np.multiply(dy, y, out=out)
    np.divide(out, divisor, out=out)
    np.negative(out, out=out)


def _sqrt_backward(dy, y, out):
    np.divide(dy, y, out=out)
    np.multiply(out, out.dtype.type(0.5), out=out)


def _exp_shifted(dy, x, shift, out):
    np.subtract(x, shift, out=out)
    np.exp(out, out=out)
    np.multiply(out, dy, out=out)


def _larger_backward(dy, a, b, out):
    """The share of `a` in the gradient of max(a, b): all of it where a > b, half where they are equal."""
    np.multiply(dy, (a > b) + (a == b) * out.dtype.type(0.5), out=out)


def _clamp(x, low, high, out):
    np.minimum(np.maximum(x, low), high, out=out)


_FUNCTIONS = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": _power, "neg": np.negative,
    "maximum": np.maximum, "minimum": np.minimum, "clamp": _clamp, "abs": np.absolute, "exp": np.exp, "log": np.log,
    "sqrt": np.sqrt, "tanh": np.tanh, "where": _where,
    "relu": lambda x, out: np.maximum(x, 0, out=out),
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "logical_not": np.logical_not,
    "divisor_backward": _divisor_backward, "pow_base_backward": _power_base_backward,
    "pow_exponent_backward": _power_exponent_backward, "larger_backward": _larger_backward,
    "smaller_backward": lambda dy, a, b, out: _larger_backward(dy, b, a, out),
    "clamp_backward": lambda dy, x, low, high, out: np.multiply(dy, (x >= low) & (x <= high), out=out),
    "abs_backward": lambda dy, x, out: np.multiply(dy, np.sign(x), out=out),
    "sqrt_backward": _sqrt_backward, "exp_shifted": _exp_shifted,
    "square_difference": lambda x, y, out: (np.subtract(x, y, out=out), np.multiply(out, out, out=out)),
    "scaled_difference": lambda dy, x, y, out: (np.subtract(x, y, out=out), np.multiply(out, dy, out=out)),
}
_TO_BOOL = {"eq", "ne", "lt", "le", "gt", "ge", "logical_not"}


def apply(name: str, *operands: torch.Tensor) -> torch.Tensor:
    if name in LOOPS:
        return _loop(LOOPS[name], operands)
    arrays = [t.numpy() for t in operands]
    shapes = {a.shape for a in arrays}
    shape = shapes.pop() if len(shapes) == 1 else np.broadcast_shapes(*shapes)
    out = memory.empty(shape, torch.bool if name in _TO_BOOL else operands[-1].dtype)
    result = out.numpy()
    if result.size <= STEP:
        with np.errstate(all="ignore"):
            _FUNCTIONS[name](*arrays, out=result)
    else:
        _launch(_FUNCTIONS[name], arrays, result)
    return out


def _loop(loop, operands) -> torch.Tensor:
    out = memory.empty(operands[0].shape, operands[0].dtype)
    vectors = [as_vector(t) for t in (*operands, out)]
    launch_rows(lambda part: loop(*(v[part] for v in vectors)), out.numel(), 1)
    return out


def _launch(function, arrays: list[np.ndarray], out: np.ndarray) -> None:
    """function(*arrays, out=out) over parts along one axis; arrays are broadcast against `out`."""
    if all(a.ndim == 0 or (a.shape == out.shape and a.flags.c_contiguous) for a in arrays):
        arrays, out = [a.reshape(-1) if a.ndim else a for a in arrays], out.reshape(-1)
    arrays = [a.reshape((1,) * (out.ndim - a.ndim) + a.shape) if a.ndim else a for a in arrays]
    axis = max(range(out.ndim), key=lambda i: min(out.shape[i], 64))
    extent = out.shape[axis]
    over = launch_rows if isinstance(function, np.ufunc) else launch_blocks

    def program(rows: slice):
        part = (slice(None),) * axis + (rows,)
        with np.errstate(all="ignore"):
            function(*(a if a.ndim == 0 or a.shape[axis] == 1 else a[part] for a in arrays), out=out[part])

    over(program, extent, out.size // max(extent, 1))


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return memory.empty(x.shape, dtype).copy_(x)


def accumulate(into: torch.Tensor, x: torch.Tensor) -> None:
    total, values = into.view(-1).numpy(), as_vector(x)
    launch_rows(lambda part: np.add(total[part], values[part], out=total[part]), total.size, 1)


def scale(x: torch.Tensor, factor: torch.Tensor) -> None:
    number = factor.item()
    if number == 1:
        return
    flat = x.view(math.prod(x.shape)).numpy()
    launch_rows(lambda part: np.multiply(flat[part], flat.dtype.type(number), out=flat[part]), flat.size, 1)
