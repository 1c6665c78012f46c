"""Other shapes of the same elements: views where possible, copies where not."""

from __future__ import annotations

from typing import Sequence

import kernels

from ..errors import UserError
from ..autograd import Op, Tensor
from .checks import dimension, dimensions, full_shape, operands, shape_arguments, sum_to


class Reshape(Op):
    def forward(self, x, *, shape):
        self.shape = x.shape
        return x.reshape(shape)

    def backward(self, dy):
        return dy.reshape(self.shape)


class Permute(Op):
    def forward(self, x, *, dims):
        self.dims = dims
        return x.permute(dims)

    def backward(self, dy):
        inverse = [0] * len(self.dims)
        for position, dim in enumerate(self.dims):
            inverse[dim] = position
        return dy.permute(inverse)


class Expand(Op):
    def forward(self, x, *, shape):
        self.shape = x.shape
        return x.expand(shape)

    def backward(self, dy):
        return sum_to(dy, self.shape)


class Contiguous(Op):
    def forward(self, x):
        return kernels.copy(x)

    def backward(self, dy):
        return dy


class Cat(Op):
    def forward(self, *parts, dim):
        self.dim, self.sizes = dim, [part.shape[dim] for part in parts]
        return kernels.indexing.cat(*parts, dim=dim)

    def backward(self, dy):
        return tuple(dy.split(self.sizes, self.dim))


class Split(Op):
    def forward(self, x, *, sizes, dim):
        self.dim = dim
        return tuple(x.split(sizes, dim))

    def backward(self, *gradients):
        return kernels.indexing.cat(*gradients, dim=self.dim)


def reshape(x: Tensor, *shape) -> Tensor:
    """The elements in order in another shape, of which one size may be -1; a view when the strides allow it."""
    return Reshape.apply(x, shape=full_shape("reshape", shape_arguments(shape), x.shape))


def view(x: Tensor, *shape) -> Tensor:
    """`reshape` that refuses to copy."""
    shape = full_shape("view", shape_arguments(shape), x.shape)
    try:
        x.data.view(shape)
    except RuntimeError:
        raise UserError(f"view: strides {x.data.stride()} of shape {x.shape} do not allow a view of shape {shape}; "
                        "use reshape") from None
    return Reshape.apply(x, shape=shape)


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions start_dim to end_dim, both included, as one."""
    if x.ndim == 0:
        return reshape(x, 1)
    start, end = (dimension("flatten", d, x.ndim) for d in (start_dim, end_dim))
    if start > end:
        raise UserError(f"flatten: start_dim must not come after end_dim, got {start_dim} and {end_dim}")
    return reshape(x, *x.shape[:start], -1, *x.shape[end + 1:])


def permute(x: Tensor, *dims) -> Tensor:
    """The dimensions in another order."""
    numbers = tuple(dimension("permute", d, x.ndim) for d in shape_arguments(dims))
    if sorted(numbers) != list(range(x.ndim)):
        raise UserError(f"permute: each of the {x.ndim} dimensions must be named once, got {shape_arguments(dims)}")
    return Permute.apply(x, dims=numbers)


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two dimensions exchanged."""
    dims = list(range(x.ndim))
    a, b = dimension("transpose", dim0, x.ndim), dimension("transpose", dim1, x.ndim)
    dims[a], dims[b] = b, a
    return Permute.apply(x, dims=tuple(dims))


def expand(x: Tensor, *shape) -> Tensor:
    """Dimensions of size 1 repeated to a larger size without copying; -1 keeps a size; new ones come first."""
    shape = shape_arguments(shape)
    new = len(shape) - x.ndim
    sizes = tuple(x.shape[i - new] if n == -1 and i >= new else n for i, n in enumerate(shape))
    if new < 0 or min(sizes, default=0) < 0 or any(old not in (1, n) for old, n in zip(x.shape, sizes[new:])):
        raise UserError("expand: only dimensions of size 1 can grow, and new ones come first, "
                        f"got {x.shape} to {shape}")
    return Expand.apply(x, shape=sizes)


def squeeze(x: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Without the dimensions of size 1 (of those named)."""
    dims = dimensions("squeeze", dim, x.ndim)
    return Reshape.apply(x, shape=tuple(n for i, n in enumerate(x.shape) if n != 1 or i not in dims))


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """With a new dimension of size 1 at `dim`."""
    dim = dimension("unsqueeze", dim, x.ndim + 1)
    return Reshape.apply(x, shape=(*x.shape[:dim], 1, *x.shape[dim:]))


def contiguous(x: Tensor) -> Tensor:
    """x itself if its elements lie in order without gaps, else a copy that does."""
    return x if x.data.is_contiguous() else Contiguous.apply(x)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors one after the other along an existing dimension; their other sizes are equal."""
    parts = _several("cat", tensors)
    dim = dimension("cat", dim, parts[0].ndim)
    first = parts[0].shape
    for part in parts:
        if len(part.shape) != len(first) or any(part.shape[i] != n for i, n in enumerate(first) if i != dim):
            raise UserError(f"cat: shapes must agree in every dimension but {dim}, got {first} and {part.shape}")
    return Cat.apply(*parts, dim=dim)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape along a new dimension."""
    parts = _several("stack", tensors)
    for part in parts:
        if part.shape != parts[0].shape:
            raise UserError(f"stack: shapes must be equal, got {parts[0].shape} and {part.shape}")
    dim = dimension("stack", dim, parts[0].ndim + 1)
    return Cat.apply(*(unsqueeze(part, dim) for part in parts), dim=dim)


def _several(name: str, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not tensors:
        raise UserError(f"{name}: give at least one tensor, got none")
    return operands(*tensors)


def split(x: Tensor, sizes: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Pieces along a dimension: of the sizes given, or all of one size and a smaller last one. Views."""
    dim = dimension("split", dim, x.ndim)
    extent = x.shape[dim]
    if isinstance(sizes, int):
        if sizes < 1:
            raise UserError(f"split: the size of a piece must be at least 1, got {sizes}")
        sizes = [min(sizes, extent - start) for start in range(0, extent, sizes)] or [0]
    if sum(sizes) != extent or min(sizes, default=0) < 0:
        raise UserError(f"split: sizes must add up to the {extent} of dimension {dim}, got {tuple(sizes)}")
    return Split.apply(x, sizes=list(sizes), dim=dim)


def chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` pieces of equal size (the last may be smaller) along a dimension. Views."""
    if chunks < 1:
        raise UserError(f"chunk: the number of chunks must be at least 1, got {chunks}")
    return split(x, max(1, -(-x.shape[dimension("chunk", dim, x.ndim)] // chunks)), dim)


def unbind(x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The slices along a dimension, without it."""
    return tuple(squeeze(part, dim) for part in split(x, 1, dim)) if x.shape[dimension("unbind", dim, x.ndim)] else ()
