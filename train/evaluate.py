"""Loss of a trained model on a text: python -m train.evaluate RUN --data FILE"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from engine import Module, no_grad
from models.generate import add_context_argument
from models.run_folder import load_run
from tokenizer import Tokenizer
from train.command import Parser, run_command
from train.config import Config
from train.data import Batch, Batches, Part, TokenStream, prepare
from train.errors import NonFiniteError, UserError
from train.loop import LossFunction, next_token_loss
from train.metrics import NATS_PER_BIT

BATCH_TOKENS = 4096


class Evaluation(NamedTuple):
    """`loss` in nats per predicted token; `tokens` predicted; `bytes` of text in them."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int


def evaluate(model: Module, batches: Iterable[Batch], loss: LossFunction = next_token_loss) -> Evaluation:
    """Mean loss over all predicted tokens of the batches, without dropout and without gradients."""
    was_training = model.training
    model.eval()
    total, tokens, size = 0.0, 0, 0
    try:
        with no_grad():
            for batch in batches:
                if batch.predicted:
                    total += loss(model, batch, batch.predicted).item() * batch.predicted
                    tokens += batch.predicted
                    size += batch.bytes
    finally:
        model.train(was_training)
    mean = total / max(1, tokens)
    return Evaluation(mean, math.exp(min(mean, 700.0)), total / (NATS_PER_BIT * max(1, size)), tokens, size)


def evaluation_batches(part: Part, tokenizer: Tokenizer, seq_len: int, doc_mask: bool,
                       max_tokens: int = 0) -> Iterable[Batch]:
    """All of a part in order; of one with more than `max_tokens` (0: no limit) rows spread over it, always the same."""
    rows = max(1, BATCH_TOKENS // seq_len)
    if not max_tokens or max_tokens >= part.tokens:
        return Batches(TokenStream(part, shuffle=False), seq_len, tokenizer, doc_mask).sweep(rows)
    some = Batches(TokenStream(part, window=seq_len), seq_len, tokenizer, doc_mask)
    wanted = max(1, max_tokens // seq_len)
    return (some.batch(row * seq_len, min(rows, wanted - row)) for row in range(0, wanted, rows))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m train.evaluate", description="Loss of a trained model on a text, as JSON: loss in "
                    "nats per token, perplexity, bits_per_byte, tokens, bytes.")
    parser.add_argument("run", metavar="RUN", help="run folder, such as runs/demo-1")
    parser.add_argument("--data", nargs="+", required=True, metavar="PATH", help="files and folders")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="default: the last one")
    parser.add_argument("--text-field", metavar="F", help="of JSON and Parquet rows (default: the run's)")
    parser.add_argument("--document-separator", metavar="S", help="cuts text files into documents (default: the run's)")
    parser.add_argument("--max-tokens", type=int, default=0, metavar="N",
                        help="of a larger text, this many (default: all)")
    parser.add_argument("--seq-len", type=int, metavar="S", help="tokens of one row (default: the run's)")
    add_context_argument(parser)
    arguments = parser.parse_args(argv)
    run = load_run(arguments.run, arguments.checkpoint, settings=arguments.settings)
    data = Config.load(Path(arguments.run) / "config.toml").data
    separator = data.document_separator if arguments.document_separator is None else arguments.document_separator
    corpus = prepare(arguments.data, run.tokenizer, arguments.text_field or data.text_field, separator or None,
                     val_fraction=0.0, cache_dir=data.cache_dir or None)
    seq_len = data.seq_len if arguments.seq_len is None else arguments.seq_len
    if not 1 <= seq_len <= run.config.max_seq_len:
        raise UserError(f"--seq-len must be 1 to the model's max_seq_len ({run.config.max_seq_len}): got {seq_len}")
    batches = evaluation_batches(corpus.train, run.tokenizer, seq_len, data.doc_mask, arguments.max_tokens)
    result = evaluate(run.model, batches)
    if not math.isfinite(result.loss):
        raise NonFiniteError(f"{arguments.run}, step {run.step}: the loss is {result.loss}")
    print(json.dumps(result._asdict()))
    return 0


if __name__ == "__main__":
    run_command(main)
