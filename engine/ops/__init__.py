"""Operations on tensors: each a function here, and a method of Tensor where torch has one."""

from ..autograd import Op, Tensor
from .checks import to
from .elementwise import add, div, eq, ge, gt, le, logical_not, lt, maximum, minimum, mul, ne, pow, sub, where
from .experts import expert_counts, experts, route, router_logits
from .fused import attention, feed_forward, linear, linear_cross_entropy, rms_norm_linear, swiglu_linear
from .indexing import embedding, gather, index
from .layout import (
    cat, chunk, contiguous, expand, flatten, permute, reshape, split, squeeze, stack, transpose, unbind, unsqueeze,
    view,
)
from .methods import attach
from .normalization import add_rms_norm, dropout, layer_norm, rms_norm
from .probability import cross_entropy, log_softmax, logsumexp, softmax
from .product import matmul
from .reduction import amax, amin, argmax, argmin, max, mean, min, sum, var
from .sequence import causal_attention, rope, swiglu
from .talking_heads import talking_heads
from .unary import abs, clamp, exp, gelu, log, neg, relu, relu_squared, sigmoid, silu, sqrt, tanh

attach()

__all__ = [
    "Op", "Tensor", "abs", "add", "add_rms_norm", "amax", "amin", "argmax", "argmin", "attention", "cat",
    "causal_attention", "chunk", "clamp", "contiguous", "cross_entropy", "div", "dropout", "embedding", "eq", "exp",
    "expand", "expert_counts", "experts", "feed_forward", "flatten", "gather", "ge", "gelu", "gt", "index",
    "layer_norm", "le", "linear", "linear_cross_entropy", "log", "log_softmax", "logical_not", "logsumexp", "lt",
    "matmul", "max", "maximum", "mean", "min", "minimum", "mul", "ne", "neg", "permute", "pow", "relu",
    "relu_squared", "reshape", "rms_norm", "rms_norm_linear", "rope", "route", "router_logits", "sigmoid", "silu",
    "softmax", "split", "sqrt", "squeeze", "stack", "sub", "sum", "swiglu", "swiglu_linear", "talking_heads",
    "tanh", "to", "transpose", "unbind", "unsqueeze", "var", "view", "where",
]
