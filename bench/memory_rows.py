"""What bench/memory_bound.py needs of a GPU case beyond its row of the table: which inputs have gradients, and rivals.

Liger-Kernel's functions (arXiv 2410.10989) are called as its own modules call them, where it is installed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from .gpu_case import Buffer, GpuCase, positive
from .gpu_cases_rows import VOCABULARY
from .references import rotate

Tensors = tuple[torch.Tensor, ...]
Function = Callable[[SimpleNamespace], object]
"""Buffers -> a result or several."""
OUTPUT_GRADIENTS = ("dy", "dtotal", "dout", "dloss")


@dataclass(frozen=True)
class Row:
    """One case's particulars.

    Args:
        leaves: buffers that have gradients, in the order in which our backward gives them.
        gradients: buffers that are the gradients of the rivals' results, in their order; none: of a loss.
        together: forward and backward are timed as one, as ours makes gradients in forward.
        small: sizes for the comparison with float64; None: there is none.
        tiny: sizes for Triton's interpreter; None: it does not run there.
        rivals: name -> maker of a rival, from the case; in place of the case's own and Liger's.
        liger: Liger's function.
        own_leaves: (side, buffers) -> leaves by name for a rival that wants other ones, or None.
    """

    leaves: tuple[str, ...]
    gradients: tuple[str, ...]
    together: bool = False
    small: dict[str, int] | None = None
    tiny: dict[str, int] | None = None
    rivals: Callable[[GpuCase], dict[str, Function]] | None = None
    liger: Function | None = None
    own_leaves: Callable[[str, SimpleNamespace], dict[str, torch.Tensor] | None] | None = None


def _liger(module: str, name: str) -> Callable:
    """Liger's autograd function."""
    import importlib

    return getattr(importlib.import_module(f"liger_kernel.ops.{module}"), name).apply


def _norm(b: SimpleNamespace):
    return _liger("rms_norm", "LigerRMSNormFunction")(b.x, b.gain, 1e-6, 0.0, "llama", False)


def _add_norm(b: SimpleNamespace):
    y, total = _liger("fused_add_rms_norm", "LigerFusedAddRMSNormFunction")(b.x, b.residual, b.gain, 1e-6)
    return total, y


def _layer_norm(b: SimpleNamespace):
    return _liger("layer_norm", "LigerLayerNormFunction")(b.x, b.gain, b.bias, 1e-5)


def _halves(side: str, b: SimpleNamespace) -> dict[str, torch.Tensor] | None:
    if side != "liger":
        return None
    gate, up = b.h.detach().chunk(2, dim=-1)
    return {"gate": gate.contiguous(), "up": up.contiguous()}


def _swiglu(b: SimpleNamespace):
    return _liger("swiglu", "LigerSiLUMulFunction")(b.gate, b.up)


def _cross_entropy(b: SimpleNamespace):
    arguments = b.targets, None, -100, 0.0, 0.0, "sum"
    return _liger("cross_entropy", "LigerCrossEntropyFunction")(b.logits, *arguments)[0]


def _torch_cross_entropy(_case: GpuCase) -> dict[str, Function]:
    def function(b: SimpleNamespace):
        return F.cross_entropy(b.logits, b.targets, reduction="sum")

    return {"torch": function, "compile": torch.compile(function, dynamic=False)}


def _unpadded(_side: str, b: SimpleNamespace) -> dict[str, torch.Tensor]:
    return {"logits": b.logits.detach()[:, :VOCABULARY].contiguous()}


def _linear_cross_entropy(b: SimpleNamespace):
    arguments = b.targets, None, None, -100, 0.0, 0.0, "sum"
    return _liger("fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction")(b.x, b.weight, *arguments)[0]


def _torch_adamw(_case: GpuCase) -> dict[str, Function]:
    """PyTorch's fused AdamW and the rounding of the weights, and the formula under torch.compile."""

    def fused(b: SimpleNamespace):
        _fused_adamw(b.weights, b.grads, b.exp_avg, b.exp_avg_sq)
        b.working.copy_(b.weights)

    @torch.compile
    def formula(weights, grads, exp_avg, exp_avg_sq, working):
        exp_avg.lerp_(grads, 0.1)
        exp_avg_sq.lerp_(grads * grads, 0.05)
        weights.mul_(1 - 1e-5).sub_(1e-4 * exp_avg / (exp_avg_sq.sqrt() + 1e-8))
        working.copy_(weights)

    return {"torch": fused, "compile": lambda b: formula(b.weights, b.grads, b.exp_avg, b.exp_avg_sq, b.working)}


def _fused_adamw(weights, grads, exp_avg, exp_avg_sq) -> None:
    step = _step_of(weights.device)
    torch._fused_adamw_([weights], [grads], [exp_avg], [exp_avg_sq], [], [step], amsgrad=False, lr=1e-4, beta1=0.9,
                        beta2=0.95, weight_decay=0.1, eps=1e-8, maximize=False)


@functools.cache
def _step_of(device: torch.device) -> torch.Tensor:
    return torch.ones((), device=device)


def _rotate(b: SimpleNamespace):
    return rotate(b.x, b.cos, b.sin)


def _liger_rotate(b: SimpleNamespace):
    return _liger("rope", "LigerRopeFunction")(b.q, b.k, b.cos, b.sin, None, 1, b.q.shape[-1])


def _two_parts(side: str, b: SimpleNamespace) -> dict[str, torch.Tensor] | None:
    """Liger rotates (B, heads, T, D) in two tensors, which in memory are (B, T, heads, D)."""
    if side != "liger":
        return None
    q, k = (part.contiguous().transpose(1, 2) for part in b.x.detach().chunk(2, dim=2))
    return {"q": q, "k": k}


def _qk_norm_rope(b: SimpleNamespace):
    parts = b.qkv.unflatten(-1, (-1, b.q_gain.shape[0])).chunk(3, dim=2)
    normed = [F.rms_norm(part, gain.shape, gain, 1e-6) for part, gain in zip(parts, (b.q_gain, b.k_gain))]
    return torch.cat([rotate(part, b.cos, b.sin) for part in normed], dim=2).flatten(2)


def _our_qk_norm_rope(b: SimpleNamespace):
    from kernels.gpu import qk_norm_rope

    return qk_norm_rope.forward(b.qkv, HEADS, HEADS, len(b.q_gain), b.cos, b.sin, b.q_gain, b.k_gain, 1e-6)


def _our_qk_norm_rope_gradient(b: SimpleNamespace, _result):
    """In place, in what attention's backward leaves; timed again, it is the gradient of a gradient."""
    from kernels.gpu import qk_norm_rope

    gains = qk_norm_rope.backward_in_place(b.dqkv, b.qkv, HEADS, HEADS, len(b.q_gain), b.cos, b.sin, b.q_gain, b.k_gain,
                                           1e-6)
    return None, *gains


def _wave(shape: tuple[int, ...], _sizes, device: str) -> torch.Tensor:
    """Numbers that depend on their place alone, so that tensors agree in the columns that they share."""
    row, token, column = (torch.arange(size, device=device, dtype=torch.float32) for size in shape)
    return torch.sin(12.9898 * column + 78.233 * token[:, None] + 37.719 * row[:, None, None])


HEADS = 6
INSIDE = {
    "qk_norm_rope": GpuCase(
        "qk_norm_rope",
        {"qkv": Buffer("b t 3*h*d"), "cos": Buffer("t r"), "sin": Buffer("t r"), "q_gain": Buffer("d", positive),
         "k_gain": Buffer("d", positive), "dy": Buffer("b t 2*h*d", _wave), "dqkv": Buffer("b t 3*h*d", _wave)},
        _our_qk_norm_rope, _our_qk_norm_rope_gradient, {"b": 64, "t": 1024, "h": HEADS, "d": 128, "r": 64},
        ("bfloat16",), traffic=lambda n, size: (4 * n.b * n.t * n.h * n.d * size, 6 * n.b * n.t * n.h * n.d * size),
        rivals={"torch": _qk_norm_rope},
    ),
}
"""Cases of what lies inside another kernel."""
FEW = {"t": 512}
SPECIAL = {
    "rms_norm": Row(("x", "gain"), ("dy",), small=FEW, tiny={"t": 8, "d": 48}, liger=_norm),
    "rms_norm_wide": Row(("x", "gain"), ("dy",), small={"t": 128}, liger=_norm),
    "rms_norm_head": Row(("x", "gain"), ("dy",), small=FEW, liger=_norm),
    "add_rms_norm": Row(("x", "gain"), ("dtotal", "dy"), small=FEW, tiny={"t": 8, "d": 48}, liger=_add_norm),
    "layer_norm": Row(("x", "gain", "bias"), ("dy",), small=FEW, liger=_layer_norm),
    "rope": Row(("x",), (), rivals=lambda _: {"torch": _rotate, "compile": torch.compile(_rotate, dynamic=False)},
                liger=_liger_rotate, own_leaves=_two_parts),
    "qk_norm_rope": Row(("qkv", "q_gain", "k_gain"), ("dy",), small={"b": 1, "t": 512}, tiny={"b": 1, "t": 4}),
    "swiglu": Row(("h",), ("dy",), small=FEW, tiny={"t": 8, "f": 24}, liger=_swiglu, own_leaves=_halves),
    "softmax": Row(("x",), ("dy",), small=FEW, tiny={"t": 8, "d": 24}),
    "cross_entropy": Row(("logits",), (), small={"t": 64}, tiny={"t": 4, "v": 40}, liger=_cross_entropy),
    "cross_entropy_in_place": Row(("logits",), (), together=True, rivals=_torch_cross_entropy, liger=_cross_entropy,
                                  own_leaves=_unpadded),
    "linear_cross_entropy": Row(("x", "weight"), (), together=True, small={"t": 256},
                                tiny={"t": 8, "d": 16, "v": 40}, liger=_linear_cross_entropy),
    "embedding": Row(("weight",), ("dy",), small=FEW, tiny={"t": 8, "d": 16, "v": 12}),
    "adamw": Row((), (), rivals=_torch_adamw),
    "norm": Row((), ()),
}


def row_of(case: GpuCase) -> Row:
    """The case's particulars; what has none has every floating-point input as a leaf."""
    if case.name in SPECIAL:
        return SPECIAL[case.name]
    gradients = tuple(name for name in case.buffers if name in OUTPUT_GRADIENTS)
    tensors = vars(case.tensors(case.dtypes[0], "meta"))
    leaves = tuple(name for name, t in tensors.items()
                   if name not in gradients and t.dtype.is_floating_point and case.buffers[name].dtype is None)
    return Row(leaves if case.backward else (), gradients)


def rivals_of(case: GpuCase, with_liger: bool = True) -> dict[str, Function]:
    """Name -> function of the buffers: PyTorch's, that one compiled, and Liger's where it is installed."""
    row = row_of(case)
    if row.rivals:
        found = row.rivals(case)
    else:
        found = dict(case.rivals)
        if "torch" in found:
            found["compile"] = torch.compile(found["torch"], dynamic=False)
    if row.liger and with_liger and has_liger():
        found["liger"] = row.liger
    return found


def has_liger() -> bool:
    from importlib.util import find_spec

    return find_spec("liger_kernel") is not None
