"""From the name of a kernel to the program of a device, and the settings of devices."""

from __future__ import annotations

import contextlib
import functools
import importlib

import torch

_packages = {"cpu": "cpu", "cuda": "gpu", "meta": "gpu"}
"""Device -> folder of its programs."""


class Kernel:
    """The programs of one name. `kernel.function(...)` runs `kernels.<device>.<name>.function(...)`."""

    def __init__(self, name: str, contract: str):
        self.name, self.__doc__ = name, contract

    def __getattr__(self, function: str):
        if function.startswith("__"):
            raise AttributeError(function)

        def call(*arguments, **options):
            device = next(a.device.type for a in arguments if isinstance(a, torch.Tensor))
            package = _packages.get(device, device)
            program = getattr(_program(self.name, package), function, None)
            if program is None:
                raise NotImplementedError(f"kernel {self.name} has no program {function} for {package}")
            return program(*arguments, **options)

        setattr(self, function, call)
        return call


@functools.cache
def _program(name: str, package: str):
    module = f"kernels.{package}.{name}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not module.startswith(error.name):
            raise
        raise NotImplementedError(f"kernel {name} has no program for {package}") from error


@contextlib.contextmanager
def programs(package: str):
    """Within this context calls on CPU tensors run `kernels/<package>`; Triton's interpreter runs those of "gpu"."""
    before, _packages["cpu"] = _packages["cpu"], package
    try:
        yield
    finally:
        _packages["cpu"] = before


@contextlib.contextmanager
def emulated_bfloat16():
    """Within this context CPU programs round float32 values to bfloat16 wherever GPU programs store bfloat16."""
    from .cpu import rounding

    with rounding.bfloat16():
        yield


def rounded(buffer: torch.Tensor) -> torch.Tensor:
    """The buffer, rounded in place to bfloat16 within `emulated_bfloat16`. For CPU buffers of whole results."""
    if buffer.device.type != "cpu":
        return buffer
    from .cpu import rounding

    return rounding.rounded(buffer)


@contextlib.contextmanager
def tf32_products():
    """Within this context GPU products of float32 matrices round their factors to 10 bits."""
    from .gpu import launch

    launch.set_float32_precision("tf32")
    try:
        yield
    finally:
        launch.set_float32_precision("ieee")


@contextlib.contextmanager
def float32_sums():
    """Within this context PyTorch's GPU products of bfloat16 matrices are added up in float32 throughout; else parts of
    a sum that several programs share may be rounded first."""
    products = torch.backends.cuda.matmul
    before, products.allow_bf16_reduced_precision_reduction = products.allow_bf16_reduced_precision_reduction, False
    try:
        yield
    finally:
        products.allow_bf16_reduced_precision_reduction = before


def gpu_memory() -> int:
    """Bytes of memory of the GPU that programs would run on; 0 without one."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def set_threads(count: int) -> None:
    """Run CPU programs on `count` threads."""
    from .cpu import launch

    launch.set_threads(count)


def threads() -> int:
    """Number of threads that CPU programs run on."""
    from .cpu import launch

    return launch.threads()
