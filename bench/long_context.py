"""How far a model reads, with each kind of context extension: `python -m bench.long_context RUN`.

- perplexity by position: a run reads rows of its trained length times the factor (8 unless `--set
  model.context.factor` says otherwise), and the loss of every position is averaged over the rows. All kinds read the
  same rows, for `--seconds` in all: of `--data`, or of the run's own text for validation. A document that is shorter
  than a row is followed by the next one.
- needle (`--needle`): a grid of questions about facts at some depth in texts of some length
  (bench/long_context_needle.py). With RUN, of a run trained on such text; without, of a small model that is trained
  here for `--seconds` and kept in `--work`.

    python -m bench.long_context runs/demo-1
    python -m bench.long_context runs/demo-1 --data novel.txt --set model.context.factor=4
    python -m bench.long_context --needle
    python -m bench.long_context --make-text facts.jsonl
    python -m train.pretrain --data facts.jsonl --tokenizer bytes --seq-len 128 --set model.max_seq_len=128
    python -m bench.long_context RUN --needle --set model.context.kind=yarn

No kind is trained further here: for that, `train.pretrain --init-from RUN --set model.context.kind=yarn
model.context.factor=4 --seq-len N` makes a run, which is measured as what it is. A table goes to stderr, one JSON line
to stdout; `--out` keeps JSON and plots, `--write` those under bench/results/, one file for each of the two, with the
kind and its settings in its name where there is one kind alone.
"""

from __future__ import annotations

import json
import math
import sys
import time
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional as F

from bench.long_context_needle import DEPTHS, LEARNED, TRAINED_LENGTH, grid, make_text, trained_run
from bench.long_context_report import plot_needle, plot_perplexity, tables
from bench.record import machine, write_results
from engine import UserError, no_grad
from models.config import ModelConfig
from models.context import KINDS, PREFIX, ContextConfig
from models.decoder import Decoder
from models.run_folder import Run, load_run
from train.command import Parser, run_command
from train.config import Config
from train.data import Batch, Batches, TokenStream, prepare
from train.files import write_text, write_whole
from train.inputs import read_texts

FACTOR = 8.0
BINS = 8  # of the trained length, in the curve
LOGITS = 1 << 22  # that exist at a time
PLOTS = {"perplexity": plot_perplexity, "needle": plot_needle}


def parse(argv: list[str] | None) -> Namespace:
    parser = Parser(prog="python -m bench.long_context", description=__doc__,
                    formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="run folder, such as runs/demo-1")
    add("--data", nargs="+", metavar="PATH", help="text for perplexity by position (default: RUN's own for validation)")
    add("--needle", action="store_true", help="a grid of questions, of RUN or of a model trained for it")
    add("--make-text", type=Path, metavar="FILE", help="write text to train on for the needle, JSON lines, and end")
    add("--kinds", type=lambda text: text.split(","), metavar="A,B", help=f"some of {', '.join(KINDS)} (default: all, "
        "or what RUN was trained with)")
    add("--set", action="extend", nargs="+", default=[], dest="settings", metavar="model.context.key=value",
        help="one kind alone, or what all share")
    add("--checkpoint", type=int, metavar="STEP", help="default: the last one")
    add("--seconds", type=float, default=150.0, metavar="S", help="of perplexity, and of training for the needle")
    add("--trials", type=int, default=20, metavar="N", help="questions in a cell of the grid")
    add("--work", type=Path, default=Path("runs"), metavar="DIR", help="keeps the needle's model (default: runs)")
    add("--out", type=Path, metavar="DIR", help="results to DIR/long-context.json and plots beside it")
    add("--write", action="store_true", help="results and plots to bench/results/long-context-*")
    arguments = parser.parse_args(argv)
    for name in ("seconds", "trials"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name} must be above 0: got {getattr(arguments, name)}")
    unknown = sorted(set(arguments.kinds or ()) - set(KINDS))
    if unknown:
        parser.error(f"--kinds must be some of {', '.join(KINDS)}: got {unknown[0]!r}")
    if not arguments.make_text and not arguments.needle and not arguments.run:
        parser.error("give RUN, --needle or --make-text: got none of them")
    if arguments.data and not arguments.run:
        parser.error("--data needs a RUN that reads it: got none")
    return arguments


def trained_length(run: Run) -> int:
    """Tokens of the rows that a run was trained on without extension."""
    if run.config.context.kind != "none":
        return run.config.context.trained_length
    try:
        return min(Config.load(run.path / "config.toml").data.seq_len, run.config.max_seq_len)
    except UserError:
        return run.config.max_seq_len


def variants(run: Run, kinds: Sequence[str] | None, settings: Sequence[str]) -> dict[str, ModelConfig]:
    """Configs of the run's model by kind of extension, all for the same length.

    Raises:
        UserError: the run has no rotary positions, or a setting is bad.
    """
    config = run.config
    if config.position != "rope":
        raise UserError(f"context extension needs a run with model.position rope: got {config.position!r}")
    own = config.context
    start = own if own.kind != "none" else ContextConfig("linear", FACTOR, trained_length(run))
    start = start.changed(settings)
    if any(setting.startswith(f"{PREFIX}kind") for setting in settings) or own.kind != "none" and not kinds:
        kinds = [start.kind]
    found = {}
    for kind in kinds or KINDS:
        if kind == "none":
            found[kind] = config.with_(context=ContextConfig(), max_seq_len=start.length)
        else:
            found[kind] = config.with_(context=replace(start, kind=kind))
    return found


def with_weights(config: ModelConfig, run: Run) -> Decoder:
    """The run's weights in a model of another context, for evaluation."""
    model = Decoder(config, seed=None)
    model.load_state_dict(run.model.state_dict())
    return model.to(run.model.device).eval()


def losses(model: Decoder, batch: Batch) -> np.ndarray:
    """Nats of each target, float64 [rows, T]; NaN where it does not count."""
    with no_grad():
        hidden = model.hidden(torch.from_numpy(batch.ids).to(model.device)).data
    rows = hidden.reshape(-1, hidden.shape[-1])
    targets = torch.from_numpy(batch.targets).reshape(-1).to(hidden.device)
    step, weight = max(1, LOGITS // len(model.output.data)), model.output.data
    found = [F.cross_entropy((rows[i: i + step] @ weight.T).float(), targets[i: i + step], reduction="none")
             for i in range(0, len(rows), step)]
    nats = torch.cat(found).cpu().numpy().astype(np.float64)
    nats[batch.targets.reshape(-1) < 0] = np.nan
    return nats.reshape(batch.targets.shape)


def perplexity(models: dict[str, Decoder], batches: Batches, seconds: float, length: int,
               say: Callable[[str], None]) -> dict:
    """Perplexity by position over as many rows as fit in `seconds`, at least two if there are; every model reads all of
    them."""
    total, began = max(1, batches.stream.tokens // batches.seq_len), 0.0
    sums = {kind: [] for kind in models}
    for row in range(total):
        batch = batches.batch(row * batches.seq_len, 1)
        for kind, model in models.items():
            sums[kind].append(losses(model, batch)[0])
        began = began if row else time.monotonic()  # after what the first row alone has to compile
        spent = time.monotonic() - began
        if row and spent * (row + 1) / row > seconds:
            break
    say(f"{row + 1} of {total} rows of {batches.seq_len} tokens in {spent:.0f} s")
    nats = {kind: np.nanmean(np.stack(rows), axis=0) for kind, rows in sums.items()}
    bands, bins = bands_of(length, batches.seq_len), bins_of(length, batches.seq_len)
    return {"rows": row + 1, "tokens": (row + 1) * batches.seq_len, "bands": bands, "bins": bins,
            "by_band": {kind: _means(values, bands) for kind, values in nats.items()},
            "by_bin": {kind: _means(values, bins) for kind, values in nats.items()}}


def bands_of(trained: int, length: int) -> list[tuple[int, int]]:
    """Positions for the table: a quarter of the trained length, and on from there by doubling."""
    edges = [0, max(1, trained // 4)]
    while edges[-1] < length:
        edges.append(min(2 * edges[-1], length))
    return list(zip(edges, edges[1:]))


def bins_of(trained: int, length: int) -> list[tuple[int, int]]:
    """Positions for the curve, of equal width."""
    width = max(1, trained // BINS)
    return [(first, min(first + width, length)) for first in range(0, length, width)]


def _means(nats: np.ndarray, spans: list[tuple[int, int]]) -> list[float]:
    return [math.exp(min(700.0, float(np.nanmean(nats[first:stop])))) for first, stop in spans]


def read_text(paths: Sequence[str] | None, run: Run, length: int) -> Batches:
    """Rows of a text, or of the largest that the run keeps for validation, in an order that is always the same."""
    config = Config.load(run.path / "config.toml")
    if paths:
        data, name = config.data, "--data"
        part = prepare(paths, run.tokenizer, data.text_field, data.document_separator or None, val_fraction=0.0,
                       cache_dir=data.cache_dir or None).train
    else:
        found, name = read_texts(config, run.tokenizer).validation.values(), f"{run.path}'s text for validation"
        if not found:
            raise UserError(f"{run.path} has no text for validation: give --data")
        part = max(found, key=lambda part: part.tokens)
    if part.tokens < length:
        raise UserError(f"{name} must have at least one row of {length} tokens: got {part.tokens}")
    return Batches(TokenStream(part, window=length), length, run.tokenizer, False)


def measure(arguments: Namespace, say: Callable[[str], None]) -> dict:
    """All that was asked for."""
    path = arguments.run or trained_run(arguments.work, arguments.seconds)
    run = load_run(path, arguments.checkpoint)
    configs = variants(run, arguments.kinds, arguments.settings)
    length, longest = trained_length(run), min(config.max_seq_len for config in configs.values())
    models = {kind: with_weights(config, run) for kind, config in configs.items()}
    results = {"run": run.path.name, "step": run.step, "trained_length": length, "factor": longest / length,
               "kinds": {kind: vars(config.context) for kind, config in configs.items()},
               "settings": [setting.removeprefix(PREFIX) for setting in arguments.settings],
               "machine": machine(torch.get_num_threads())}
    if arguments.data or not arguments.needle:
        results["perplexity"] = perplexity(models, read_text(arguments.data, run, longest), arguments.seconds, length,
                                           say)
    if arguments.needle:
        lengths = [length << power for power in range(math.floor(math.log2(longest / length)) + 1)]
        grids = {}
        for kind, model in models.items():
            say(f"needle, {kind}")
            grids[kind] = grid(model, run.tokenizer, lengths, arguments.trials, say=say)
        results["needle"] = {"lengths": lengths, "depths": list(DEPTHS), "trials": arguments.trials, "grids": grids}
        if max(sum(rows[0]) / len(rows[0]) for rows in grids.values()) < LEARNED:
            say(f"the model has not learned to answer at {length} tokens: train it longer (--seconds) for a grid that "
                "says something of context")
    return results


def keep(results: dict, folder: Path) -> list[Path]:
    """Write JSON and plots; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "long-context.json"]
    write_text(written[0], json.dumps(results, indent=1) + "\n")
    for section in [section for section in PLOTS if section in results]:
        written.append(folder / f"long-context-{section}.png")
        write_whole(written[-1], partial(PLOTS[section], results), durable=False)
    return written


def record(results: dict) -> list[str]:
    """Write each section by `write_results`; returns what it tells."""
    shared = {name: value for name, value in results.items() if name not in PLOTS}
    words = [*results["kinds"], *(setting for setting in results["settings"] if not setting.startswith("kind="))]
    suffix = "".join(f"-{word}" for word in words).replace("=", "-") if len(results["kinds"]) == 1 else ""
    return [write_results(f"long-context-{section}{suffix}", {**shared, section: results[section]},
                          partial(draw, results)) for section, draw in PLOTS.items() if section in results]


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    console = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else 140)
    if arguments.make_text:
        make_text(arguments.make_text, TRAINED_LENGTH)
        console.print(f"written: {arguments.make_text}, documents of {TRAINED_LENGTH} tokens")
        return 0
    results = measure(arguments, lambda line: console.print(line, style="dim", markup=False))
    for table in tables(results):
        console.print(table)
    print(json.dumps(results))
    if arguments.out:
        console.print("written: " + ", ".join(map(str, keep(results, arguments.out))))
    for line in record(results) if arguments.write else ():
        console.print(line)
    return 0


if __name__ == "__main__":
    run_command(main)
