"""A run with experts made of a trained one: python -m models.upcycle RUN --experts 8 --top-k 2

Of a dense run: every expert is a copy of the layer's SwiGLU, and the router is small and random (sparse upcycling,
arXiv 2212.05055, section 3). As the gates of a token add up to 1, the new model is the old one until it is trained.

Of a run with experts, more of them (--add): the new ones are copies of those of their layer that were used most when
the run logged last, one of each, and their rows in the router are copies with a little noise, which decides between the
two (duplication: arXiv 2604.19835). As many experts as before see a token. Where one of them was copied, the copy
usually is the token's next choice: with top_k 1 the model stays as it was, but for raw gates of a softmax, which are
shares of more; with top_k 2 or more the copy takes the place of the last choice, and the loss is a little higher until
the two have grown apart.

RUN-moe, or what --out names, is the folder of a run at step 0, without moments of an optimizer: `python -m
train.pretrain --out RUN-moe --resume` trains it by the settings and on the text of RUN, `--init-from RUN-moe` by
others, and models.generate reads it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tomli_w
import torch
from safetensors.torch import save_file

from engine import UserError
from models.command import Parser, exit_code
from models.config import ModelConfig
from models.decoder import Decoder
from models.experts_config import PREFIX, ExpertsConfig
from models.run_folder import CHECKPOINT_FORMAT, FACTS, Run, checkpoint_at, load_run, read_state, read_tables
from models.settings import from_texts

ROUTER_STD = 0.02
NOISE = 0.01
"""Of a copied row of a router, to its root mean square."""
AS_DENSE = {"normalised": True, "shared": 0, "chain": 1, "width": 0}
"""What lets a mixture of copies be the layer that was copied."""
KEPT = ("versions", "seed", "threads", "tokenizer", "data")
"""What state.json of the new run has from the old one's."""


def upcycled(dense: Run, experts: ExpertsConfig, seed: int = 0) -> Decoder:
    """A dense run's model with copies of each layer's SwiGLU as experts.

    Raises:
        UserError: the run is not one of SwiGLU layers, or the result would not be the same function.
    """
    kind = dense.config.feed_forward
    if kind != "swiglu":
        raise UserError(f"{dense.path}: model.feed_forward must be swiglu to be copied into experts: got {kind!r}"
                        + ("; --add N gives it more of them" * (kind == "moe")))
    for name, value in AS_DENSE.items():
        if getattr(experts, name) != value:
            raise UserError(f"{PREFIX}{name} must be {str(value).lower()}, or the new model would not begin as the old "
                            f"one: got {str(getattr(experts, name)).lower()}")
    config = dense.config.with_(feed_forward="moe", experts=experts)
    _need_experts(config)
    model, weights, rng = Decoder(config, seed=None), dense.model.state_dict(), np.random.default_rng(seed)
    for name, own in model.state_dict().items():
        if name in weights:
            own.copy_(weights[name])
        elif name.endswith((".gate_up", ".down")):
            own.copy_(weights[f"{name}.weight"])  # to each expert
        elif name.endswith(".weight"):
            own.copy_(torch.from_numpy(rng.standard_normal(tuple(own.shape)) * ROUTER_STD))
    return model


def grown(run: Run, more: int, seed: int = 0) -> Decoder:
    """The model of a run with experts, with so many more of them in each layer that has any.

    Raises:
        UserError: the run has none.
    """
    settings = run.config.experts
    if run.config.feed_forward != "moe":
        raise UserError(f"{run.path}: model.feed_forward must be moe to get more experts: "
                        f"got {run.config.feed_forward!r}")
    config = run.config.with_(experts=dataclasses.replace(settings, n=settings.n + more))
    model, weights, rng = Decoder(config, seed=None), run.model.state_dict(), np.random.default_rng(seed)
    copied = _copied(run, more)
    for name, own in model.state_dict().items():
        old = weights[name]
        own[:len(old)].copy_(old)
        if own.shape == old.shape:
            continue
        for place, source in enumerate(copied[int(name.split(".")[1])], len(old)):
            values = old[source].numpy()
            if ".routers." in name and name.endswith(".weight"):
                size = NOISE * float(np.sqrt(np.mean(np.square(values))))
                values = values + size * rng.standard_normal(values.shape).astype(values.dtype)
            own[place].copy_(torch.tensor(values))
    return model


def _copied(run: Run, more: int) -> dict[int, list[int]]:
    """By layer, the experts to copy: the most used first, of equals the lower, and again from the first after all."""
    settings, config = run.config.experts, run.config
    layers = [layer for layer in range(config.n_layers) if settings.here(layer)]
    loads = _last_loads(run, len(layers))
    return {layer: [int(np.argsort(-load, kind="stable")[i % settings.n]) for i in range(more)]
            for layer, load in zip(layers, loads)}


def _last_loads(run: Run, layers: int) -> np.ndarray:
    """Choices of each expert, [layers, experts], of the last row of metrics.jsonl up to the checkpoint; zeros where
    there is none."""
    found, file = np.zeros((layers, run.config.experts.n)), run.path / "metrics.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
            loads = np.array(row["experts"]["load"], dtype=np.float64)
        except (ValueError, KeyError, TypeError):
            continue
        if row["step"] <= run.step and loads.shape == found.shape:
            found = loads
    return found


def write_run(model: Decoder, source: Run, out: Path, how: str, command: str) -> None:
    """Write the folder of a run at step 0, whole or not at all, with a model that was made of another run's.

    Args:
        how, command: what was done, in words and for a shell: for the run's report.
    Raises:
        UserError: the folder is there, or cannot be written.
    """
    if out.exists():
        raise UserError(f"--out must name a folder that is not there yet: got {out}")
    temporary = out.with_name(f".partial-{out.name}-{os.getpid()}")
    checkpoint = temporary / "checkpoints" / "step-000000"
    before = read_state(checkpoint_at(source.path, source.step))
    tables = read_tables(source.path) | {"model": dataclasses.asdict(model.config)}
    try:
        checkpoint.mkdir(parents=True)
        (temporary / "config.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
        source.tokenizer.save(temporary / "vocabulary.json")
        weights = checkpoint / "model.safetensors"
        save_file(model.state_dict(), weights)
        state = {"format": CHECKPOINT_FORMAT, "step": 0, "cursor": 0, "seconds": 0.0, "wall_seconds": 0.0, "updates": 0,
                 **{key: before[key] for key in KEPT if key in before},
                 "files": {weights.name: {"bytes": weights.stat().st_size, "sha256": _digest(weights)}}}
        (checkpoint / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        facts = {"made": {"how": how, "command": command}}
        (temporary / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        os.rename(temporary, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def experts_from(n: int, top_k: int, settings: Sequence[str]) -> ExpertsConfig:
    """With texts such as `model.experts.bias_rate=0.001` applied."""
    keys = {field.name for field in dataclasses.fields(ExpertsConfig)} - {"n", "top_k"}
    changes = from_texts(ExpertsConfig, settings, PREFIX, keys, f"{PREFIX}key=value here, the key not n or top_k")
    return ExpertsConfig(n=n, top_k=top_k, **changes)


def _need_experts(config: ModelConfig) -> None:
    if not any(config.experts.here(layer) for layer in range(config.n_layers)):
        raise UserError(f"{PREFIX}first_dense + {PREFIX}every must be at most model.n_layers ({config.n_layers}): "
                        f"got {config.experts.first_dense + config.experts.every}")


def make(arguments: argparse.Namespace, command: str) -> str:
    """Do what the flags say; returns what to tell of it."""
    if arguments.seed < 0:
        raise UserError(f"--seed must be at least 0: got {arguments.seed}")
    if arguments.out is None:
        run = Path(arguments.run)
        arguments.out = run.with_name(f"{run.resolve().name}-moe")
    if arguments.out.exists():
        raise UserError(f"--out must name a folder that is not there yet: got {arguments.out}")
    if arguments.add is not None:
        if arguments.experts is not None or arguments.top_k is not None or arguments.settings:
            raise UserError("--add changes how many experts there are and nothing else: leave out --experts, --top-k "
                            "and --set")
        if arguments.add < 1:
            raise UserError(f"--add must be at least 1: got {arguments.add}")
    defaults = ExpertsConfig()
    experts = experts_from(defaults.n if arguments.experts is None else arguments.experts,
                           defaults.top_k if arguments.top_k is None else arguments.top_k, arguments.settings)
    run = load_run(arguments.run, arguments.checkpoint, device="cpu")
    if arguments.add is None:
        model, how = upcycled(run, experts, arguments.seed), "upcycled"
    else:
        model, how = grown(run, arguments.add, arguments.seed), f"{arguments.add} experts added"
    write_run(model, run, arguments.out, f"{how}, from step {run.step} of {run.path}", command)
    config, out = model.config, arguments.out
    layers = sum(config.experts.here(layer) for layer in range(config.n_layers))
    return (f"{out}: {config.experts.n} experts, {config.experts.top_k} for a token, in {layers} of {config.n_layers} "
            f"layers; {config.n_parameters():,} parameters, {config.n_parameters(active=True):,} of them for a token\n"
            f"next:  python -m train.pretrain --out {out} --resume\n"
            f"       python -m models.generate {out} --prompt TEXT")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m models.upcycle", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="run folder, such as runs/demo-1")
    parser.add_argument("--out", type=Path, metavar="NEW", help="folder of the new run (default: RUN-moe)")
    parser.add_argument("--experts", type=int, metavar="E", help="of each layer (default: 8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="of them for a token (default: 2)")
    parser.add_argument("--add", type=int, metavar="N", help="so many experts more for a run that has some")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="default: the last one")
    parser.add_argument("--seed", type=int, default=0, help="of the router, or of its noise")
    parser.add_argument("--set", action="extend", nargs="+", default=[], dest="settings",
                        metavar="model.experts.key=value", help="other settings, such as model.experts.bias_rate=0.001")
    arguments = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "models.upcycle", *(sys.argv[1:] if argv is None else argv)])
    return exit_code(lambda: print(make(arguments, command)))


if __name__ == "__main__":
    sys.exit(main())
