"""The sides of bench/moe.py: mixtures of experts and dense layers of the same FLOPs, of ours and of PyTorch's.

A mixture comes with its router. Gradients of weights are added to those that are there, as in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """A mixture: tokens, width, width of an expert, experts, experts per token."""

    tokens: int
    width: int
    inner: int
    experts: int
    k: int

    @property
    def name(self) -> str:
        return f"{self.experts} experts top-{self.k} x {self.inner}"

    @property
    def flops(self) -> int:
        """Of forward and backward of the experts' products."""
        return 3 * 2 * self.tokens * self.k * 3 * self.width * self.inner


def buffers(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> SimpleNamespace:
    """Random tokens, weights and a gradient of the result; weights scaled as at a start of training."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int, fan_in: int = 1) -> torch.Tensor:
        return (torch.randn(sizes, generator=generator, device=device) * fan_in**-0.5).to(dtype)

    e, d, f = shape.experts, shape.width, shape.inner
    return SimpleNamespace(
        x=normal(shape.tokens, d), dy=normal(shape.tokens, d), router=normal(e, d, fan_in=d),
        gate_up=normal(e, 2 * f, d, fan_in=d), down=normal(e, d, f, fan_in=f),
        dense_gate_up=normal(2 * shape.k * f, d, fan_in=d), dense_down=normal(d, shape.k * f, fan_in=shape.k * f))


def ours(**sizes: int):
    """A step of our mixture."""
    from engine import Tensor, ops

    b, k = buffers(Shape(**sizes)), sizes["k"]
    router, gate_up, down = (Tensor(t, requires_grad=True) for t in (b.router, b.gate_up, b.down))

    def step():
        x = Tensor(b.x, requires_grad=True)
        gates, _, indices = ops.route(ops.linear(x, router), k)
        ops.experts(x, gates, indices, gate_up, down).backward(b.dy)

    return step


def dense(**sizes: int):
    """A step of our dense layer, as wide as all experts of a token together."""
    from engine import Tensor, ops

    b = buffers(Shape(**sizes))
    gate_up, down = (Tensor(t, requires_grad=True) for t in (b.dense_gate_up, b.dense_down))

    def step():
        x = Tensor(b.x, requires_grad=True)
        ops.swiglu_linear(ops.linear(x, gate_up), down).backward(b.dy)

    return step


def torch_loop(**sizes: int):
    """A step of PyTorch's mixture, by a loop over experts."""
    from bench.references import experts

    b, k = buffers(Shape(**sizes)), sizes["k"]
    router, gate_up, down = (t.requires_grad_() for t in (b.router, b.gate_up, b.down))

    def step():
        x = b.x.detach().requires_grad_()
        logits, indices = F.linear(x, router).topk(k)
        experts(x, logits.softmax(-1), indices, gate_up, down).backward(b.dy)

    return step


def sizes_of(shape: Shape) -> dict[str, int]:
    return asdict(shape)


def our_mixture(b: SimpleNamespace, k: int) -> tuple[Callable[[], tuple[torch.Tensor, ...]], torch.Tensor]:
    """Forward and backward of our mixture by the kernels, without a graph: gives the result, the gradient of x, and the
    float32 sums that the gradients of gate_up, down and router are added to. And where it writes the chosen experts."""
    import kernels

    into = tuple(torch.zeros(t.shape, device=t.device) for t in (b.gate_up, b.down, b.router))
    indices = torch.empty((len(b.x), k), dtype=torch.int64, device=b.x.device)
    no_dscores = torch.zeros((len(b.x), len(b.router)), device=b.x.device)

    def step():
        logits = kernels.linear.forward(b.x, b.router)
        gates, scores = kernels.routing.forward(logits, indices, "softmax", True)
        groups = kernels.routing.group(indices, len(b.router))
        y, h = kernels.experts.forward(b.x, gates, groups, b.gate_up, b.down)
        dx, dgates, _, _ = kernels.experts.backward(b.dy, b.x, gates, groups, b.gate_up, b.down, h, into[:2])
        dlogits = kernels.routing.backward(dgates, no_dscores, logits, indices, gates, scores, "softmax", True)
        through_router, _ = kernels.linear.backward(dlogits, b.x, b.router, into[2])
        dx.add_(through_router)
        return y, dx, *into

    return step, indices


def gpu_ours(b: SimpleNamespace, k: int) -> Callable[[], torch.Tensor]:
    step, _ = our_mixture(b, k)
    return lambda: step()[0]


def mixture_by_hand(b: SimpleNamespace, indices: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """What `our_mixture` gives, in PyTorch and in `dtype`, for experts that are chosen."""
    from bench.references import experts

    x, gate_up, down, router = leaves = [t.to(dtype, copy=True).requires_grad_() for t in
                                         (b.x, b.gate_up, b.down, b.router)]
    y = experts(x, F.linear(x, router).gather(-1, indices).softmax(-1), indices, gate_up, down)
    y.backward(b.dy.to(dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def gpu_dense(b: SimpleNamespace, _k: int) -> Callable[[], torch.Tensor]:
    """Forward and backward of our dense layer by the kernels."""
    import kernels

    into = [torch.zeros(t.shape, device=t.device) for t in (b.dense_gate_up, b.dense_down)]

    def step():
        h = kernels.linear.forward(b.x, b.dense_gate_up)
        y = kernels.swiglu_linear.forward(h, b.dense_down)
        dh, _ = kernels.swiglu_linear.backward(b.dy, h, b.dense_down, into[1])
        kernels.linear.backward(dh, b.x, b.dense_gate_up, into[0])
        return y

    return step


def grouped_mixture(x, router, gate_up, down, k: int) -> torch.Tensor:
    """A mixture by torch._grouped_mm: rows sorted by expert, no wait for the GPU, a gather to combine them."""
    logits, indices = F.linear(x, router).float().topk(k)
    flat = indices.flatten()
    order = flat.argsort(stable=True)
    ends = torch.zeros(len(router), dtype=torch.int32, device=x.device).scatter_add_(
        0, flat, torch.ones_like(flat, dtype=torch.int32)).cumsum(0, dtype=torch.int32)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    h = torch._grouped_mm(x[order // k], gate_up.transpose(1, 2), offs=ends)
    gate, up = h.chunk(2, dim=-1)
    z = torch._grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)
    return (z[place].view(len(x), k, -1) * logits.softmax(-1)[..., None].to(z.dtype)).sum(1)


def dense_layer(x, gate_up, down) -> torch.Tensor:
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


def _torch_step(function, b: SimpleNamespace, names: tuple[str, ...], *more) -> Callable[[], torch.Tensor]:
    weights = [getattr(b, name).detach().requires_grad_() for name in names]

    def step():
        y = function(b.x.detach().requires_grad_(), *weights, *more)
        y.backward(b.dy)
        return y.detach()

    return step


def gpu_grouped(b: SimpleNamespace, k: int) -> Callable[[], torch.Tensor]:
    return _torch_step(grouped_mixture, b, ("router", "gate_up", "down"), k)


def gpu_grouped_compiled(b: SimpleNamespace, k: int) -> Callable[[], torch.Tensor]:
    return _torch_step(torch.compile(grouped_mixture), b, ("router", "gate_up", "down"), k)


def gpu_torch_dense(b: SimpleNamespace, _k: int) -> Callable[[], torch.Tensor]:
    return _torch_step(dense_layer, b, ("dense_gate_up", "dense_down"))


def gpu_torch_dense_compiled(b: SimpleNamespace, _k: int) -> Callable[[], torch.Tensor]:
    return _torch_step(torch.compile(dense_layer), b, ("dense_gate_up", "dense_down"))


GPU_SIDES = {"ours": gpu_ours, "dense": gpu_dense, "torch_grouped": gpu_grouped,
             "torch_grouped_compiled": gpu_grouped_compiled, "torch_dense": gpu_torch_dense,
             "torch_dense_compiled": gpu_torch_dense_compiled}
