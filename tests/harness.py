"""Running a row of the table of cases: drawn shapes, layouts and options; results and gradients of both sides."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st

import kernels
from bench.case import Case
from engine import Tensor
from engine.autograd import run_backward

GPU = "cuda" if torch.cuda.is_available() else "cpu"
"""Where tests of GPU programs keep their tensors; on "cpu" Triton's interpreter runs them."""
LAYOUTS = ("contiguous", "contiguous", "reversed", "strided", "offset", "expanded")


@dataclass(frozen=True)
class Example:
    """One way to call a case: inputs in float32 (or whole numbers), each in some memory layout.

    Inputs and the gradients of outputs are numbers that `precision` can hold.
    """

    case: Case
    inputs: list[torch.Tensor]
    options: dict
    needs: list[bool]
    seed: int
    precision: torch.dtype = torch.float32

    def rounded(self, dtype: torch.dtype) -> Example:
        """The same example with numbers that `dtype` can hold."""
        return replace(self, inputs=[converted(converted(t, dtype), t.dtype) for t in self.inputs], precision=dtype)

    def __repr__(self) -> str:
        shapes = [(tuple(t.shape), t.stride()) for t in self.inputs]
        return f"Example({self.case.name}, {shapes}, {self.options}, needs={self.needs}, seed={self.seed})"


def gpu_programs():
    """Context in which operations on tensors on the device GPU run kernels/gpu."""
    return kernels.programs("gpu") if GPU == "cpu" else contextlib.nullcontext()


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in another memory layout; "expanded" repeats the first slice of a dimension instead."""
    if values.ndim == 0 or layout == "contiguous" or 0 in values.shape:
        return values.contiguous()
    if layout == "reversed":
        order = list(reversed(range(values.ndim)))
        return values.permute(order).contiguous().permute(order)
    if layout == "strided":
        return torch.stack([values, torch.full_like(values, 77)], dim=-1)[..., 0]
    if layout == "offset":
        return torch.cat([torch.full_like(values[:1], 77), values])[1:]
    dim = values.shape.index(max(values.shape))
    return values.narrow(dim, 0, 1).expand(values.shape)


@st.composite
def examples(draw, case: Case, layouts: tuple[str, ...] = LAYOUTS, most: int | None = None):
    """Examples of a case, whose differentiable inputs lie in memory in one of the `layouts`.

    Inputs have at most `most` elements, as far as the smallest sizes allow.
    """
    sizes = {name: draw(st.integers(low, high), label=name) for name, (low, high, _) in case.dims.items()}
    while most and max(math.prod(shape) for shape in case.shapes(sizes)) > most:
        smaller = {name: max(case.dims[name][0], size // 2) for name, size in sizes.items()}
        if smaller == sizes:
            break
        sizes = smaller
    options = {name: draw(st.sampled_from(values), label=name) for name, values in case.options.items()}
    shapes = case.shapes(sizes)
    if case.broadcasts:
        kept = draw(st.integers(0, len(shapes) - 1))
        shapes = [shape if i == kept else draw(_smaller(shape)) for i, shape in enumerate(shapes)]
    seed = draw(st.integers(0, 10_000))
    arrays = case.arrays(np.random.default_rng(seed), shapes, sizes)
    inputs = []
    for entry, array in zip(case.inputs, arrays):
        layout = draw(st.sampled_from(layouts)) if entry.gradient else "contiguous"
        inputs.append(laid_out(torch.from_numpy(np.array(array)), layout))
    able = [entry.gradient for entry in case.inputs]
    needs = able if draw(st.integers(0, 3)) else [n and draw(st.booleans()) for n in able]
    return Example(case, inputs, options, needs, seed)


@st.composite
def _smaller(draw, shape):
    """A shape that broadcasts to `shape`."""
    shape = tuple(1 if draw(st.booleans()) else n for n in shape)
    return shape[draw(st.integers(0, len(shape))):]


def converted(tensor: torch.Tensor, dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
    """In another floating dtype and a buffer of its own, with the same strides; whole numbers as they are."""
    if not tensor.dtype.is_floating_point:
        return tensor.to(device)
    extent = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride())) + 1 if tensor.numel() else 0
    buffer = torch.as_strided(tensor, (extent,), (1,)).to(device, dtype, copy=True)
    return torch.as_strided(buffer, tensor.shape, tensor.stride())


def output_gradients(outputs, example: Example, dtype: torch.dtype, disturbance=0.0) -> list[torch.Tensor | None]:
    """A gradient in some layout for each floating-point output, the same values for any dtype.

    It has `dtype`, or float32 like an output that is float32 whatever the inputs are.
    """
    rng, noise = np.random.default_rng(example.seed + 1), np.random.default_rng(example.seed + 4)
    gradients = []
    for output in outputs:
        values = torch.from_numpy(rng.standard_normal(tuple(output.shape)).astype(np.float32))
        values = values.to(example.precision).to(torch.float32)
        if disturbance:
            values = values * (1 + disturbance * torch.from_numpy(noise.standard_normal(tuple(output.shape))))
        layout = LAYOUTS[int(rng.integers(len(LAYOUTS)))]
        wanted = output.dtype.is_floating_point
        kind = torch.promote_types(dtype, output.dtype) if wanted else None
        gradients.append(converted(laid_out(values, layout), kind, output.device) if wanted else None)
    return gradients


def run_torch(example: Example, dtype: torch.dtype, disturbance: float = 0.0):
    """Outputs, and gradients of the inputs that need one, by torch; of inputs a relative `disturbance` off."""
    inputs = [converted(t, dtype) for t in example.inputs]
    if disturbance:
        rng = np.random.default_rng(example.seed + 3)
        inputs = [t * (1 + disturbance * torch.from_numpy(rng.standard_normal(tuple(t.shape))))
                  if t.dtype.is_floating_point else t for t in inputs]
    for tensor, need in zip(inputs, example.needs):
        tensor.requires_grad_(need) if tensor.dtype.is_floating_point else None
    result = example.case.torch(*inputs, **example.options)
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    leaves = [t for t, need in zip(inputs, example.needs) if need]
    received = output_gradients(outputs, example, dtype, disturbance)
    pairs = [(y, dy) for y, dy in zip(outputs, received) if y.requires_grad]
    gradients = [None] * len(leaves)
    if pairs:
        gradients = torch.autograd.grad([y for y, _ in pairs], leaves, [dy for _, dy in pairs], allow_unused=True)
    return [y.detach() for y in outputs], list(gradients)


def run_ours(example: Example, dtype: torch.dtype, device: str = "cpu"):
    """Outputs, and gradients of the inputs that need one, by our engine."""
    inputs = [converted(t, dtype, device) for t in example.inputs]
    arguments = [Tensor(t, requires_grad=need) if entry.gradient else t
                 for t, need, entry in zip(inputs, example.needs, example.case.inputs)]
    result = example.case.ours(*arguments, **example.options)
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    leaves = [t for t, need in zip(arguments, example.needs) if need]
    run_backward([(y, dy) for y, dy in zip(outputs, output_gradients(outputs, example, dtype)) if y.requires_grad])
    return [y.data.cpu() for y in outputs], [leaf.grad if leaf.grad is None else leaf.grad.cpu() for leaf in leaves]


def run_on_gpu(example: Example, dtype: torch.dtype):
    """As `run_ours`, by the programs in kernels/gpu."""
    with gpu_programs():
        return run_ours(example, dtype, GPU)
