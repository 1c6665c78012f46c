"""Automatic differentiation over kernels: tensors, operations, modules, the parameter arena."""

from . import init, ops, random
from .arena import Arena
from .errors import UserError
from .module import Buffer, Module, Parameter
from .nn import Dropout, Embedding, Linear, RMSNorm
from .recompute import recompute
from .autograd import Op, Tensor, enable_grad, grad_enabled, no_grad, tensor

__all__ = ["Arena", "Buffer", "Dropout", "Embedding", "Linear", "Module", "Op", "Parameter", "RMSNorm", "Tensor",
           "UserError", "enable_grad", "grad_enabled", "init", "no_grad", "ops", "random", "recompute", "tensor"]
