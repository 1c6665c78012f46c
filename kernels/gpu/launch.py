"""Launching Triton programs: on the GPU, in Triton's interpreter, or not at all, only noted down.

How a kernel is written so that all three work: parameters that vary at run time come first (tensors, whole numbers,
floats, or None for a tensor left out), then the `tl.constexpr` ones; a launch gives the first by position and the
others by name.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from dataclasses import dataclass
from typing import Any, Iterator

import torch
import triton
from triton.runtime import driver

POINTER_TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64",
    torch.int64: "*i64", torch.int32: "*i32", torch.int16: "*i16", torch.int8: "*i8", torch.uint8: "*u8",
    torch.bool: "*u1",
}
ALIGNMENT = 16  # bytes of an address, or factor of a whole number, that lets the compiler use 16-byte accesses
MULTIPROCESSORS = {80: 108, 89: 128, 90: 132}  # A100, RTX 4090, H100 SXM
LAUNCHER_PARAMETERS = ["self", "gridX", "gridY", "gridZ", "stream", "function", "args"]


@dataclass(frozen=True)
class Target:
    """What programs run on. Name: a card's name, "sm_90" when only noting down, or "interpreter" (arch 0)."""

    name: str
    arch: int
    multiprocessors: int


@dataclass(frozen=True)
class Launch:
    """One launch, noted down.

    Args:
        signature: (parameter, Triton's type such as "*bf16", "i32", "fp32" or "constexpr").
        divisible: positions of the parameters known to be multiples of 16.
        constants: (parameter, value) of every constexpr, of None, and of the whole number 1, which Triton builds in.
    """

    kernel: Any
    grid: tuple[int, ...]
    signature: tuple[tuple[str, str], ...]
    divisible: tuple[int, ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int


_float32_precision = "ieee"
_launches: list[Launch] | None = None
_arch = 90
_ready: dict[tuple, tuple | None] = {}
GPU = "cuda"


def launch(kernel, grid: tuple[int, ...], *args, num_warps: int = 4, num_stages: int = 3, **constexprs) -> None:
    """Run `kernel` over `grid` (one to three whole numbers).

    On a GPU it runs on the current stream, without waiting and without allocating, so it can be captured in a CUDA
    graph once it has run outside of one.

    Args:
        args: the run-time parameters in order. Tensors lie on one device.
        num_warps, num_stages: Triton's options.
        constexprs: every `tl.constexpr` parameter, by name.
    """
    if _launches is not None:
        _launches.append(describe(kernel, grid, args, num_warps, num_stages, constexprs))
    elif interpreting():
        describe(kernel, grid, args, num_warps, num_stages, constexprs)
        kernel[grid](*args, **constexprs)
    elif 0 not in grid:
        _run(kernel, grid, args, num_warps, num_stages, constexprs)


def _run(kernel, grid, args, num_warps, num_stages, constexprs) -> None:
    """Triton's own launch costs about 11 microseconds of Python; the compiled kernel's launcher costs about 2.

    So a compiled kernel is kept by all that Triton specialises on, and its launcher called with bare addresses.
    """
    values, kinds = [], []
    for value in args:
        if isinstance(value, torch.Tensor):
            address = value.data_ptr()
            if not address and value.is_meta:
                raise RuntimeError("launch: meta tensors have no values; use `recording()`")
            values.append(address)
            kinds.append((value.dtype, address % ALIGNMENT))
        else:
            values.append(value)
            kinds.append(_number_kind(value))
    device = driver.active.get_current_device()
    key = kernel.fn, device, num_warps, num_stages, *kinds, *constexprs.items()
    try:
        entry = _ready[key]
    except KeyError:
        entry = _ready[key] = _prepared(kernel, grid, args, num_warps, num_stages, constexprs)
    if entry is None:
        kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constexprs)
        return
    run, function, metadata, constants = entry
    x, y, z = (*grid, 1, 1)[:3]
    run(x, y, z, driver.active.get_current_stream(device), function, metadata, None, None, None, *values, *constants)


def _number_kind(value) -> tuple:
    """What Triton specialises on, or finer, for a parameter that is no tensor."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value == 1, value % ALIGNMENT == 0, -(2**31) <= value < 2**31
    if value is None or isinstance(value, float):
        return (type(value),)
    raise TypeError(f"launch: a run-time parameter is a tensor, whole number, float or None, got {value!r}")


def _prepared(kernel, grid, args, num_warps, num_stages, constexprs) -> tuple | None:
    """Compiled and loaded: (launcher, function, metadata, constexprs in order); None if Triton's insides differ."""
    describe(kernel, grid, args, num_warps, num_stages, constexprs)
    strangers = {str(value.device) for value in args if isinstance(value, torch.Tensor) and value.device.type != GPU}
    if strangers:  # nobody else looks: what is handed on is a bare address
        raise ValueError(f"launch: {kernel.fn.__name__} takes tensors on the GPU, got some on {', '.join(strangers)}")
    compiled = kernel.warmup(*args, grid=grid, num_warps=num_warps, num_stages=num_stages, **constexprs)
    run = getattr(compiled, "run", None)
    if run is None or list(inspect.signature(type(run).__call__).parameters) != LAUNCHER_PARAMETERS:
        return None
    constants = tuple(constexprs[name] for name in kernel.arg_names[len(args):])
    return run, compiled.function, compiled.packed_metadata, constants


def describe(kernel, grid, args, num_warps, num_stages, constexprs) -> Launch:
    """The launch as the compiler sees it.

    Raises:
        TypeError: the arguments are not those of the kernel, or of a kind that not every way of launching takes.
    """
    runtime, constant = _parameters(kernel.fn)
    if len(args) != len(runtime) or set(constexprs) != set(constant):
        raise TypeError(f"{kernel.fn.__name__} takes {runtime} by position and {constant} by name, "
                        f"got {len(args)} and {tuple(constexprs)}")
    signature, divisible, constants = [], [], []
    for position, (name, value) in enumerate(zip(runtime, args)):
        kind, multiple = _specialisation(value)
        signature.append((name, kind))
        if multiple:
            divisible.append(position)
        if kind == "constexpr":
            constants.append((name, value))
    signature += [(name, "constexpr") for name in constant]
    constants += [(name, constexprs[name]) for name in constant]
    return Launch(kernel, tuple(grid), tuple(signature), tuple(divisible), tuple(constants), num_warps, num_stages)


@functools.cache
def _parameters(function) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the run-time parameters, and of the constexprs after them."""
    entries = inspect.signature(function).parameters.values()
    constant = ["constexpr" in str(entry.annotation) for entry in entries]
    if constant != sorted(constant):
        raise TypeError(f"{function.__name__}: run-time parameters come before constexprs")
    names = [entry.name for entry in entries]
    return tuple(names[: constant.count(False)]), tuple(names[constant.count(False):])


def _specialisation(value) -> tuple[str, bool]:
    """(Triton's type, whether it is known to be a multiple of 16) of a run-time parameter, by Triton's rules."""
    if isinstance(value, torch.Tensor):
        address = value.storage_offset() * value.itemsize if value.is_meta else value.data_ptr()
        return POINTER_TYPES[value.dtype], address % ALIGNMENT == 0
    kind = _number_kind(value)
    if value is None or kind[0] is True:
        return "constexpr", False
    if isinstance(value, float):
        return "fp32", False
    return ("i32" if kind[2] else "i64"), kind[1]


@contextlib.contextmanager
def recording(arch: int = 90) -> Iterator[list[Launch]]:
    """Within this context launches are only noted down in the list it gives, as for a card of architecture `arch`."""
    global _launches, _arch
    before = _launches, _arch
    _launches, _arch = [], arch
    try:
        yield _launches
    finally:
        _launches, _arch = before


def interpreting() -> bool:
    """Whether Triton was loaded with TRITON_INTERPRET=1: programs run as Python on the CPU, to be tested."""
    return _INTERPRETING


_INTERPRETING = bool(triton.knobs.runtime.interpret)


def target() -> Target:
    """What a launch made now runs on."""
    if _launches is not None:
        return Target(f"sm_{_arch}", _arch, MULTIPROCESSORS[_arch])
    if interpreting():
        return Target("interpreter", 0, 3)
    return _card(torch.cuda.current_device())


@functools.cache
def _card(device: int) -> Target:
    card = torch.cuda.get_device_properties(device)
    return Target(card.name, 10 * card.major + card.minor, card.multi_processor_count)


def float32_precision() -> str:
    """How products of float32 matrices are made, for `input_precision` of tl.dot: "ieee" or "tf32"."""
    return _float32_precision


def set_float32_precision(precision: str) -> None:
    """For our products and those of PyTorch: "ieee" is float32 throughout, "tf32" rounds factors to 10 bits."""
    global _float32_precision
    if precision not in ("ieee", "tf32"):
        raise ValueError(f'float32 products are "ieee" or "tf32", got {precision!r}')
    _float32_precision = precision
    torch.set_float32_matmul_precision("highest" if precision == "ieee" else "high")
