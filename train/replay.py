"""Run a batch again that gave a value which is not finite: python -m train.replay RUN/non-finite/step-000123"""

from __future__ import annotations

from pathlib import Path

import kernels
from engine import random
from engine.precision import precision
from models.decoder import Decoder
from models.run_folder import checkpoint_at, read_tokenizer
from train import checkpoint
from train.checkpoint import Tensors
from train.command import Parser, run_command
from train.config import Config
from train.data import Batch
from train.diagnosis import Finding, diagnose, documents, load_finding
from train.loop import next_token_loss
from train.optim import make_optimizer
from train.progress import printable

DOCUMENTS_SHOWN = 8


def replay(run: Path, weights: Tensors, batch: Batch, micro_rows: int) -> Finding:
    """What a batch brings about with these weights under a run's settings."""
    config = Config.load(run / "config.toml")
    kernels.set_threads(config.run.threads or kernels.threads())
    policy = precision(config.run.precision, config.run.device)
    with policy.active():
        random.set_seed(config.run.seed)
        model = Decoder(config.model, seed=None).to(config.run.device)
        optimizer = make_optimizer(model, config.optim, policy.working)
        checkpoint.restore(model.state_dict(), weights, f"{run}: the weights")
        for parameter in model.parameters():
            parameter.refresh()
        return diagnose(model, optimizer, batch, micro_rows, next_token_loss)


def shown_documents(finding: Finding, batch: Batch, run: Path) -> str:
    """Lines that name the documents of a batch, the one that holds the value first."""
    found = documents(batch, read_tokenizer(run))
    if finding.row is not None:
        found.sort(key=lambda one: (one["row"] != finding.row, not one["start"] <= finding.token < one["stop"]))
    lines = [f"row {one['row']}, tokens {one['start']} to {one['stop']}: {printable(one['text'])!r}"
             for one in found[:DOCUMENTS_SHOWN]]
    if len(found) > DOCUMENTS_SHOWN:
        lines.append(f"and {len(found) - DOCUMENTS_SHOWN:,} more")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m train.replay", description="Run a batch again that gave a value which is not "
                    "finite, and say where the first one comes from. Exit code: 0 when that is what the run found.")
    parser.add_argument("path", metavar="RUN/non-finite/STEP", type=Path,
                        help="such as runs/demo-1/non-finite/step-000123")
    parser.add_argument("--checkpoint", type=int, metavar="STEP",
                        help="weights of another checkpoint of the run (default: those before the step)")
    arguments = parser.parse_args(argv)
    step, recorded, batch, weights = load_finding(arguments.path)
    run, source = arguments.path.resolve().parents[1], arguments.path
    if weights is None or arguments.checkpoint is not None:
        source = checkpoint_at(run, step - 1 if arguments.checkpoint is None else arguments.checkpoint)
        weights = checkpoint.load(source, with_optimizer=False).model
    print(f"batch of step {step}: tokens {batch.first_token:,} to {batch.first_token + batch.ids.size:,}, "
          f"{len(batch.ids)} rows of {batch.ids.shape[1]}, on the weights in {source}")
    finding = replay(run, weights, batch, recorded.micro_rows)
    print(f"{finding}\n{shown_documents(finding, batch, run)}")
    same = finding == recorded
    print("as the run found it" if same else f"the run found something else: {recorded}")
    return 0 if same else 1


if __name__ == "__main__":
    run_command(main)
