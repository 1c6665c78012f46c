"""Arithmetic, comparisons and choices, with broadcasting."""

from __future__ import annotations

import torch

import kernels

from ..errors import UserError
from ..autograd import Op, Tensor
from .checks import broadcast_shape, floating, operands, sum_to

_apply = kernels.elementwise.apply


class _Binary(Op):
    """result = name(a, b). Subclasses give the gradients of one operand each, before broadcasting is undone."""

    name: str

    def forward(self, a, b):
        self.shapes = a.shape, b.shape
        y = _apply(self.name, a, b)
        self.keep(a, b, y)
        return y

    def keep(self, a, b, y):
        self.saved = a, b

    def backward(self, dy):
        da = sum_to(self.backward_a(dy), self.shapes[0]) if self.needs[0] else None
        db = sum_to(self.backward_b(dy), self.shapes[1]) if self.needs[1] else None
        return da, db


class Add(_Binary):
    name = "add"

    def keep(self, a, b, y):
        pass

    def backward_a(self, dy):
        return dy

    backward_b = backward_a


class Sub(Add):
    name = "sub"

    def backward_b(self, dy):
        return _apply("neg", dy)


class Mul(_Binary):
    name = "mul"

    def keep(self, a, b, y):
        self.saved = a if self.needs[1] else None, b if self.needs[0] else None

    def backward_a(self, dy):
        return _apply("mul", dy, self.saved[1])

    def backward_b(self, dy):
        return _apply("mul", dy, self.saved[0])


class Div(_Binary):
    name = "div"

    def keep(self, a, b, y):
        self.saved = b, y if self.needs[1] else None

    def backward_a(self, dy):
        return _apply("div", dy, self.saved[0])

    def backward_b(self, dy):
        return _apply("divisor_backward", dy, self.saved[1], self.saved[0])


class Pow(_Binary):
    name = "pow"

    def keep(self, a, b, y):
        self.saved = a, b, y if self.needs[1] else None

    def backward_a(self, dy):
        return _apply("pow_base_backward", dy, *self.saved[:2])

    def backward_b(self, dy):
        return _apply("pow_exponent_backward", dy, *self.saved)


class Maximum(_Binary):
    name, towards = "maximum", "larger_backward"

    def backward_a(self, dy):
        return _apply(self.towards, dy, *self.saved)

    def backward_b(self, dy):
        return _apply(self.towards, dy, *reversed(self.saved))


class Minimum(Maximum):
    name, towards = "minimum", "smaller_backward"


def _binary(op: type[_Binary], a, b) -> Tensor:
    a, b = operands(a, b)
    if a.data.shape != b.data.shape:
        broadcast_shape(op.name, a.shape, b.shape)
    return op.apply(a, b)


def add(a, b) -> Tensor:
    """a + b, element by element; like all of these, of tensors that broadcast, or a tensor and a number."""
    return _binary(Add, a, b)


def sub(a, b) -> Tensor:
    """a - b."""
    return _binary(Sub, a, b)


def mul(a, b) -> Tensor:
    """a * b."""
    return _binary(Mul, a, b)


def div(a, b) -> Tensor:
    """a / b; of whole numbers, as float32."""
    return _binary(Div, *map(floating, operands(a, b)))


def pow(a, b) -> Tensor:
    """a to the power b."""
    return _binary(Pow, a, b)


def maximum(a, b) -> Tensor:
    """The larger of a and b; equal elements share the gradient."""
    return _binary(Maximum, a, b)


def minimum(a, b) -> Tensor:
    """The smaller of a and b; equal elements share the gradient."""
    return _binary(Minimum, a, b)


def _comparison(name: str, a, b) -> Tensor:
    a, b = operands(a, b)
    broadcast_shape(name, a.shape, b.shape)
    return Tensor(_apply(name, a.data, b.data))


def eq(a, b) -> Tensor:
    """a == b as booleans; comparisons have no gradient."""
    return _comparison("eq", a, b)


def ne(a, b) -> Tensor:
    """a != b as booleans."""
    return _comparison("ne", a, b)


def lt(a, b) -> Tensor:
    """a < b as booleans."""
    return _comparison("lt", a, b)


def le(a, b) -> Tensor:
    """a <= b as booleans."""
    return _comparison("le", a, b)


def gt(a, b) -> Tensor:
    """a > b as booleans."""
    return _comparison("gt", a, b)


def ge(a, b) -> Tensor:
    """a >= b as booleans."""
    return _comparison("ge", a, b)


def logical_not(x: Tensor) -> Tensor:
    """True where x is zero or False."""
    return Tensor(_apply("logical_not", x.data))


class Where(Op):
    def forward(self, condition, a, b):
        self.condition, self.shapes = condition, (a.shape, b.shape)
        return _apply("where", condition, a, b)

    def backward(self, dy):
        zero = torch.zeros((), dtype=dy.dtype, device=dy.device)
        da = sum_to(_apply("where", self.condition, dy, zero), self.shapes[0]) if self.needs[1] else None
        db = sum_to(_apply("where", self.condition, zero, dy), self.shapes[1]) if self.needs[2] else None
        return None, da, db


def where(condition: Tensor, a, b) -> Tensor:
    """a where the boolean condition holds, else b; the three broadcast. At least one of a and b is a tensor."""
    if condition.dtype != torch.bool:
        raise UserError(f"where: the condition must be boolean, got {condition.dtype}")
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        raise UserError("where: one of the two choices must be a tensor, "
                        f"got {type(a).__name__} and {type(b).__name__}")
    a, b = operands(a, b)
    broadcast_shape("where", condition.shape, a.shape, b.shape)
    return Where.apply(condition, a, b)
