"""Initial weights of a decoder, in one place."""

from __future__ import annotations

import numpy as np

from engine import Module, init
from models.config import ModelConfig

EMBEDDING_STD = 0.02
HEAD_STD = 0.02


def initialise(model: Module, config: ModelConfig, seed: int) -> None:
    """Draws every parameter anew, in the order of their names.

    A matrix [d_out, d_in] is drawn from N(0, 1 / d_in), so that its outputs have the variance of its inputs. The
    matrices that write into the residual stream (a part's `residual_outputs`) start at zero, so that a layer begins
    as the identity, or, with `residual_init` "scaled", are further divided by sqrt(2 n_layers), so that the stream's
    variance does not grow with depth (GPT-2). Embedding and head are small: the first predictions are near uniform.
    """
    residual = {f"{prefix}.{name}" for prefix, part in model.named_modules()
                for name in getattr(part, "residual_outputs", ())}
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        if len(parameter.shape) == 1:
            init.ones_(parameter)
        elif name == "embedding.weight":
            init.normal_(parameter, EMBEDDING_STD, rng)
        elif name == "head.weight":
            init.normal_(parameter, HEAD_STD, rng)
        elif name not in residual:
            init.normal_(parameter, parameter.shape[1] ** -0.5, rng)
        elif config.residual_init == "zero":
            init.zeros_(parameter)
        else:
            init.normal_(parameter, (2 * config.n_layers * parameter.shape[1]) ** -0.5, rng)
