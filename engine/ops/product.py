"""Matrix products."""

from __future__ import annotations

import kernels

from ..errors import UserError
from ..autograd import Op, Tensor
from .checks import broadcast_shape, operands, sum_to
from .layout import squeeze, unsqueeze


class MatMul(Op):
    def forward(self, a, b):
        self.saved = a, b
        return kernels.matmul.matmul(a, b)

    def backward(self, dy):
        a, b = self.saved
        da = db = None
        if self.needs[0]:
            da = sum_to(kernels.matmul.matmul(dy, b.transpose(-2, -1)), a.shape)
        if self.needs[1]:
            if b.ndim == 2:
                a, dy = a.reshape(-1, a.shape[-1]), dy.reshape(-1, dy.shape[-1])
            db = sum_to(kernels.matmul.matmul(a.transpose(-2, -1), dy), b.shape)
        return da, db


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix products of the last two dimensions; leading dimensions broadcast.

    A one-dimensional `a` counts as a row and a one-dimensional `b` as a column, which the result then lacks.
    """
    a, b = operands(a, b)
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise UserError("matmul: the last dimension of the first must equal the last but one (or only) dimension of "
                        f"the second, got {a.shape} and {b.shape}")
    row, column = a.ndim == 1, b.ndim == 1
    a, b = unsqueeze(a, 0) if row else a, unsqueeze(b, 1) if column else b
    broadcast_shape("matmul (leading dimensions)", a.shape[:-2], b.shape[:-2])
    y = MatMul.apply(a, b)
    if row:
        y = squeeze(y, -2)
    return squeeze(y, -1) if column else y
