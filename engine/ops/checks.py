"""What operations ask of their arguments, and broadcasting."""

from __future__ import annotations

import math
from typing import Sequence

import numpy as np
import torch

import kernels

from ..errors import UserError
from ..autograd import Op, Tensor, tensor


class Cast(Op):
    def forward(self, x, *, dtype):
        self.dtype = x.dtype
        return kernels.elementwise.cast(x, dtype)

    def backward(self, dy):
        return kernels.elementwise.cast(dy, self.dtype)


def to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in another dtype; the gradient comes back in the dtype of x."""
    return x if x.dtype == dtype else Cast.apply(x, dtype=dtype)


def floating(x: Tensor) -> Tensor:
    """x itself, or integers and booleans as float32."""
    return x if x.dtype.is_floating_point else to(x, torch.float32)


def as_ids(values) -> torch.Tensor:
    """Whole numbers as an int64 buffer: from a Tensor, a torch tensor, a NumPy array or nested lists."""
    buffer = values.data if isinstance(values, Tensor) else values
    if not isinstance(buffer, torch.Tensor):
        buffer = torch.from_numpy(np.asarray(buffer))
    if buffer.dtype.is_floating_point or buffer.dtype == torch.bool:
        raise UserError(f"ids, targets and indices must be whole numbers, got {buffer.dtype}")
    return buffer.to(torch.int64)


def check_range(name: str, ids: torch.Tensor, stop: int) -> None:
    """Raise unless every id is in [0, stop), which is only known without waiting where ids lie in the CPU's memory."""
    if ids.numel() and ids.device.type == "cpu":
        array = ids.numpy()
        low, high = array.min(), array.max()
        if low < 0 or high >= stop:
            raise UserError(f"{name}: indices must lie in [0, {stop}), got {low} to {high}")


def operands(*values) -> tuple[Tensor, ...]:
    """Tensors of one dtype, by torch's promotion rules, from tensors and numbers of which at least one is a tensor."""
    first = next(v for v in values if isinstance(v, Tensor))
    tensors = []
    for value in values:
        if isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
            dtype = torch.result_type(first.data, value)
            value = Tensor(torch.full((), value, dtype=dtype, device=first.device))
        elif not isinstance(value, Tensor):
            value = Tensor(tensor(value).data.to(first.device))
        tensors.append(value)
    dtypes = {t.data.dtype for t in tensors}
    if len(dtypes) == 1:
        return tuple(tensors)
    dtype = _common(tensors)
    return tuple(to(t, dtype) for t in tensors)


def _common(tensors: list[Tensor]) -> torch.dtype:
    dtype = torch.result_type(tensors[0].data, tensors[1].data)
    for other in tensors[2:]:
        dtype = torch.promote_types(dtype, other.dtype)
    return dtype


def expect(name: str, role: str, value, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Raise unless a tensor has this shape and dtype: compiled kernels check no bounds."""
    if tuple(value.shape) != tuple(shape) or value.dtype != dtype:
        raise UserError(f"{name}: {role} must be {dtype} of shape {tuple(shape)}, "
                        f"got {value.dtype} of shape {tuple(value.shape)}")


def expect_input(name: str, x: Tensor, weight: Tensor, width: int | None = None) -> None:
    """Raise unless x is floating-point (..., d_in) for a matrix (d_out, d_in) of the same dtype."""
    if weight.ndim != 2:
        raise UserError(f"{name}: the weight must be a matrix (d_out, d_in), got shape {weight.shape}")
    width = width or weight.shape[1]
    if x.ndim == 0 or x.shape[-1] != width:
        raise UserError(f"{name}: the last dimension of x must be {width}, got shape {x.shape}")
    if x.dtype != weight.dtype or not x.dtype.is_floating_point:
        raise UserError(f"{name}: x and the weight must share a floating dtype, got {x.dtype} and {weight.dtype}")


def broadcast_shape(name: str, *shapes: Sequence[int]) -> tuple[int, ...]:
    """The common shape of operands, by NumPy's broadcasting rules."""
    try:
        return np.broadcast_shapes(*map(tuple, shapes))
    except ValueError:
        got = " and ".join(str(tuple(shape)) for shape in shapes)
        raise UserError(f"{name}: shapes must be equal or broadcast (sizes equal or 1, from the last dimension), "
                        f"got {got}") from None


def sum_to(gradient: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A gradient of a broadcast result, summed over what was expanded from `shape`."""
    if gradient.shape == tuple(shape):
        return gradient
    lead = gradient.ndim - len(shape)
    dims = tuple(range(lead)) + tuple(i + lead for i, n in enumerate(shape) if n == 1 and gradient.shape[i + lead] != 1)
    return kernels.reduce.reduce(gradient, "sum", dims).view(tuple(shape)) if dims else gradient.reshape(tuple(shape))


def dimension(name: str, dim: int, ndim: int) -> int:
    """A dimension number from 0, counting negative ones from the end."""
    if not -ndim <= dim < ndim:
        raise UserError(f"{name}: dim must be in [{-ndim}, {ndim}) for a tensor of {ndim} dimensions, got {dim}")
    return dim % ndim


def dimensions(name: str, dims, ndim: int) -> tuple[int, ...]:
    """Several dimension numbers from 0, sorted; None or empty means all."""
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        return tuple(range(ndim))
    numbers = [dimension(name, d, ndim) for d in ((dims,) if isinstance(dims, int) else dims)]
    if len(set(numbers)) != len(numbers):
        raise UserError(f"{name}: every dimension may be named once, got {tuple(dims)}")
    return tuple(sorted(numbers))


def shape_arguments(arguments: tuple) -> tuple[int, ...]:
    """Accepts f(2, 3), f((2, 3)) and f([2, 3])."""
    if len(arguments) == 1 and not isinstance(arguments[0], int):
        arguments = tuple(arguments[0])
    return tuple(int(n) for n in arguments)


def full_shape(name: str, shape: tuple[int, ...], current: Sequence[int]) -> tuple[int, ...]:
    """`shape` with at most one -1 replaced, so that it holds as many elements as `current`."""
    count, known = math.prod(current), math.prod(n for n in shape if n != -1)
    if shape.count(-1) == 1 and known and count % known == 0:
        return tuple(count // known if n == -1 else n for n in shape)
    if -1 in shape or known != count or min(shape, default=0) < 0:
        raise UserError(f"{name}: the new shape must hold the same {count} elements (one size may be -1), "
                        f"got {tuple(current)} to {shape}")
    return shape
