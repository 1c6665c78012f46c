"""Initial weights of a decoder, in one place."""

from __future__ import annotations


import numpy as np

from engine import Module, Parameter, Tensor, init
from models.config import ModelConfig

EMBEDDING_STD = 0.02
HEAD_STD = 0.02


def initialise(model: Module, config: ModelConfig, seed: int) -> None:
    """Draws every matrix anew, in the order of their names, by the rule that `config.initialisation` names.

    Vectors become ones, but for those of a module with a `reset`, which knows their values.
    """
    rng = np.random.default_rng(seed)
    draw = {"normal": _normal, "xavier": _xavier}[config.initialisation](model, config)
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if len(parameter.shape) > 1:
            draw(name, parameter, rng)
        elif not hasattr(modules[name.rpartition(".")[0]], "reset"):
            init.ones_(parameter)
    for module in modules.values():
        if hasattr(module, "reset"):
            module.reset()


def _normal(model: Module, config: ModelConfig):
    """A matrix [d_out, d_in] is drawn from N(0, 1 / d_in), so that its outputs have the variance of its inputs.

    The matrices that write into the residual stream (a part's `residual_outputs`) start at zero, so that a layer begins
    as the identity, or, with `residual_init` "scaled", are further divided by sqrt(2 n_layers), so that the stream's
    variance does not grow with depth (GPT-2). Embedding, positions and head are small: the first predictions are near
    uniform.
    """
    residual = {f"{prefix}.{name}" for prefix, part in model.named_modules()
                for name in getattr(part, "residual_outputs", ())}
    small = {"embedding.weight": EMBEDDING_STD, "position.weight": EMBEDDING_STD, "head.weight": HEAD_STD}

    def draw(name: str, parameter: Parameter, rng: np.random.Generator) -> None:
        if name in small:
            init.normal_(parameter, small[name], rng)
        elif name not in residual:
            init.normal_(parameter, parameter.shape[-1] ** -0.5, rng)
        elif config.residual_init == "zero":
            init.zeros_(parameter)
        else:
            init.normal_(parameter, (2 * config.n_layers * parameter.shape[-1]) ** -0.5, rng)

    return draw


def _xavier(model: Module, config: ModelConfig):
    """Every matrix by `engine.init.xavier_uniform_`, those that a parameter holds one under the other each by
    itself."""
    packed = {f"{prefix}.{name}": rows for prefix, part in model.named_modules() if hasattr(part, "packed")
              for name, rows in part.packed(per_head=False).items()}

    def draw(name: str, parameter: Parameter, rng: np.random.Generator) -> None:
        matrices = parameter.data.reshape(-1, *parameter.shape[-2:])
        for matrix in matrices:
            for part in matrix.split(packed.get(name) or (len(matrix),)):
                init.xavier_uniform_(Tensor(part), rng)

    return draw
