"""Text from a trained model: python -m models.generate RUN --prompt TEXT"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from engine import UserError
from models.command import Parser, exit_code
from models.decoder import Decoder
from models.decoding import decoding
from models.run_folder import load_run
from models.sampling import Sampling
from tokenizer import StreamDecoder, Tokenizer


def window_start(length: int, capacity: int) -> int:
    """First position that the model still sees when it predicts position `length`.

    A text that outgrows the model's `capacity` is cut at the front by half a window at a time, so that a cache has
    to be filled anew only once per half window. With and without a cache the model sees the same tokens.
    """
    hop = max(1, capacity // 2)
    return max(0, -(-(length - capacity) // hop)) * hop


def generate_ids(model: Decoder, ids: Sequence[int], max_new_tokens: int, sampling: Sampling = Sampling(),
                 seed: int = 0, stop: int | None = None, n_ids: int | None = None,
                 cache: str = "keys") -> Iterator[int]:
    """New ids one by one, `max_new_tokens` at most; ends before `stop`.

    Args:
        ids: the context, at least one id; the model sees as much of its end as `window_start` says.
        n_ids: ids from here on are never drawn: rows of the head that stand for no token.
        cache: what is kept of the text, see `models.decoding.HostDecoding`.
    """
    ids = [int(i) for i in ids]
    n_ids = n_ids or model.config.vocab_size
    if not ids:
        raise UserError("generation needs at least one token of context: got none")
    if min(ids) < 0 or max(ids) >= model.config.vocab_size:
        raise UserError(f"ids must be in 0..{model.config.vocab_size - 1}: got {min(ids)} to {max(ids)}")
    was_training = model.training
    model.eval()
    source = decoding(model, sampling, seed, n_ids, cache)
    try:
        for _ in range(max_new_tokens):
            start = window_start(len(ids), model.config.max_seq_len)
            new = source.next(ids, start)
            if new == stop:
                return
            ids.append(new)
            yield new
    finally:
        model.train(was_training)


def generate_text(model: Decoder, tokenizer: Tokenizer, prompt: str, max_new_tokens: int,
                  sampling: Sampling = Sampling(), seed: int = 0, cache: str = "keys") -> Iterator[str]:
    """The continuation of `prompt` in pieces of whole characters, up to the end of the document.

    An empty prompt stands for the start of a document.
    """
    ids = tokenizer.encode(prompt) if prompt else [tokenizer.eod]
    decoder = StreamDecoder(tokenizer)
    for new in generate_ids(model, ids, max_new_tokens, sampling, seed, tokenizer.eod, tokenizer.vocab_size, cache):
        if text := decoder.push(new):
            yield text
    if text := decoder.flush():
        yield text


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that generate and chat share."""
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="default: the last one")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="at most this many new tokens")
    parser.add_argument("--temperature", type=float, default=Sampling.temperature, help="0: always the likeliest")
    parser.add_argument("--top-k", type=int, default=Sampling.top_k, metavar="K", help="0: all")
    parser.add_argument("--top-p", type=float, default=Sampling.top_p, metavar="P")
    parser.add_argument("--repetition-penalty", type=float, default=Sampling.repetition_penalty, metavar="R")
    parser.add_argument("--seed", type=int, default=0)
    add_context_argument(parser)


def add_context_argument(parser: argparse.ArgumentParser) -> None:
    """The flag of commands that can read further than their run was trained to."""
    parser.add_argument("--set", action="extend", nargs="+", default=[], dest="settings",
                        metavar="model.context.key=value", help="read longer texts, as with model.context.kind=yarn "
                        "model.context.factor=4 (default: the run's)")


def sampling_from(arguments: argparse.Namespace) -> Sampling:
    """Checks the flags of `add_sampling_arguments`."""
    if arguments.tokens < 1:
        raise UserError(f"--tokens must be at least 1: got {arguments.tokens}")
    if arguments.seed < 0:
        raise UserError(f"--seed must be at least 0: got {arguments.seed}")
    return Sampling(arguments.repetition_penalty, arguments.temperature, arguments.top_k, arguments.top_p)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m models.generate", description="Continue a text with a trained model.")
    parser.add_argument("run", metavar="RUN", help="run folder, such as runs/demo-1")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="text to continue; empty: a new document")
    add_sampling_arguments(parser)
    parser.add_argument("--cache", choices=("keys", "inputs", "none"), default="keys", help="keep keys and values, or "
                        "what the layers were given (attention jerry; on the CPU), or recompute the context for every "
                        "token")
    arguments = parser.parse_args(argv)

    def continue_prompt() -> None:
        sampling = sampling_from(arguments)
        device = "cpu" if arguments.cache == "inputs" else "auto"
        run = load_run(arguments.run, arguments.checkpoint, device, arguments.settings)
        print(arguments.prompt, end="", flush=True)
        for text in generate_text(run.model, run.tokenizer, arguments.prompt, arguments.tokens, sampling,
                                  arguments.seed, arguments.cache):
            print(text, end="", flush=True)
        print()

    return exit_code(continue_prompt)


if __name__ == "__main__":
    sys.exit(main())
