"""One run of `bench.extrapolation`: a small decoder is trained on short examples and tested on long ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import torch

import kernels
from bench.extrapolation_tasks import TASKS, TRAINED_LENGTH, VOCABULARY, PackedExamples, tokens
from engine import UserError, no_grad
from models.config import JERRY, ModelConfig
from models.decoder import Decoder
from train.command import run_command
from train.loop import Loop, next_token_loss
from train.optim import make_optimizer
from train.schedule import learning_rate
from train.sections import OptimConfig

KINDS = {
    "rope": {"position": "rope"},
    "rope-partial": {"position": "rope", "rope_fraction": 0.5},
    "jerry": {"position": "jerry"},
    "alibi": {"position": "alibi"},
    "sinusoidal": {"position": "sinusoidal"},
    "learned": {"position": "learned"},
    "none": {"position": "none"},
    "jerry-whole": {**JERRY, "dropout": 0.0, "tie_embeddings": False},
}
SEED_FORMS = ("jerry", "jerry-whole")
"""The seed system's positions in the same decoder as the others, and with all of its parts, an own head among them."""
LENGTHS = (16, 32, 64, 128, 256, 512)
EXAMPLES = 128
MODEL = {"vocab_size": VOCABULARY, "n_layers": 2, "d_model": 64, "n_heads": 4, "d_ff": 64, "tie_embeddings": True}
SCHEDULE_STEPS = 10_000
OPTIM = OptimConfig(optimizer="muon", lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0,
                    warmup_steps=SCHEDULE_STEPS // 25, min_lr_ratio=0.02)
AFFINE_LR = 1e-3
"""Of all but matrices where parameters stand for a hundred times their value (models/affine.py)."""
STEP_TOKENS, TEST_TOKENS = 1056, 16_384
FIRST_LENGTH, GROWTH = 4, 0.6
"""The longest example of the training at its begin, and the share of the time in which that grows to the end's."""


def settings(seconds: float) -> dict:
    """What runs must share to stand in one table."""
    return {"seconds": seconds, "trained_length": TRAINED_LENGTH, "lengths": list(LENGTHS), "examples": EXAMPLES,
            "model": MODEL, "step_tokens": STEP_TOKENS, "first_length": FIRST_LENGTH, "growth": GROWTH,
            "optim": {**asdict(OPTIM), "betas": list(OPTIM.betas)}, "affine_lr": AFFINE_LR}


def optim_of(kind: str) -> OptimConfig:
    """The same for all but the seed's parametrisation."""
    if KINDS[kind].get("parametrisation") == "affine":
        return replace(OPTIM, lr=AFFINE_LR, muon_lr=OPTIM.lr)
    return OPTIM


def model_config(task: str, kind: str) -> ModelConfig:
    """Long enough for every test; a learned table ends with the training, as nothing past it would ever be trained."""
    longest = tokens(task, TRAINED_LENGTH if kind == "learned" else max(LENGTHS))
    return ModelConfig(**{**MODEL, **KINDS[kind], "max_seq_len": longest})


def longest_at(share: float) -> int:
    """The longest example when this share of the training's time is spent."""
    return min(TRAINED_LENGTH, FIRST_LENGTH + int((TRAINED_LENGTH - FIRST_LENGTH) * share / GROWTH))


def run(task: str, kind: str, seed: int, seconds: float) -> dict:
    """Trains for so many seconds of CPU time and tests at every length.

    Returns:
        steps, loss of the last ones in nats per id of the answer, and by length the share of examples with the whole
        answer right ("exact") and of right ids ("ids"), None where the positions are not defined; of SEED_FORMS
        also reach and offset of each layer.
    """
    model = Decoder(model_config(task, kind), seed)
    examples = PackedExamples(task, STEP_TOKENS // tokens(task, TRAINED_LENGTH), np.random.default_rng(seed))
    optim = optim_of(kind)
    loop = Loop(model, make_optimizer(model, optim), examples.batch, next_token_loss, STEP_TOKENS)
    loop.step(0.0, 1)  # what the first step compiles and loads does not count
    spent, losses = 0.0, []
    while spent < seconds:
        begin, share = time.process_time(), spent / seconds
        lr = learning_rate(1 + int(SCHEDULE_STEPS * share), SCHEDULE_STEPS, optim)
        losses.append(loop.step(lr, longest_at(share)).loss)
        spent += time.process_time() - begin
    model.eval()
    found = {str(length): exact_match(model, task, length) for length in LENGTHS}
    result = {"task": task, "kind": kind, "seed": seed, "steps": len(losses), "loss": float(np.mean(losses[-50:])),
              **{name: {length: None if pair is None else pair[place] for length, pair in found.items()}
                 for place, name in enumerate(("exact", "ids"))}}
    if kind in SEED_FORMS:
        places = [layer.attention.position for layer in model.layers]
        result |= {"reach": [float(place.reach().data) for place in places],
                   "offset": [float(place.offset().data) for place in places]}
    return result


def exact_match(model: Decoder, task: str, length: int, count: int = EXAMPLES) -> tuple[float, float] | None:
    """Shares of wholly right answers and of right ids among `count` examples, the same for every run; None past the
    model's longest row.

    The model reads the right answer as it goes. Greedy decoding gives the right answer exactly if no id is wrong then:
    up to its first wrong id both have read the same. So one pass over a batch stands for decoding id by id.
    """
    if tokens(task, length) > model.config.max_seq_len:
        return None
    questions, answers = TASKS[task](count, length, np.random.default_rng(10_000 + length))
    ids = np.concatenate([questions, answers[:, :-1]], axis=1)
    right, rows = [], max(1, TEST_TOKENS // ids.shape[1])
    for first in range(0, count, rows):
        part = slice(first, first + rows)
        with no_grad():
            logits = model(torch.from_numpy(ids[part])).data[:, -answers.shape[1]:].numpy()
        right.append(logits.argmax(axis=-1) == answers[part])
    right = np.concatenate(right)
    return float(right.all(axis=1).mean()), float(right.mean())


def run_apart(task: str, kind: str, seed: int, seconds: float) -> dict:
    """`run` on one thread, in a process of its own: so models this small make use of every core."""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOAM_THREADS")}
    request = json.dumps({"task": task, "kind": kind, "seed": seed, "seconds": seconds})
    done = subprocess.run([sys.executable, "-m", "bench.extrapolation_runs"], input=request, text=True,
                          stdout=subprocess.PIPE, env={**os.environ, **threads})
    if done.returncode:
        raise UserError(f"{task}, {kind}, seed {seed}: the run ended with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    kernels.set_threads(1)
    print(json.dumps(run(**json.loads(sys.stdin.read()))))
    return 0


if __name__ == "__main__":
    run_command(main)
