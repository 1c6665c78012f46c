"""Talk to a trained model: python -m models.chat [RUN]

A pretrained model continues text, it does not answer. What you type joins the text so far, and the model goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from engine import UserError
from models.command import Parser, exit_code
from models.generate import add_sampling_arguments, generate_text, sampling_from
from models.run_folder import Run, load_run, run_folders
from models.sampling import Sampling

HELP = "/reset forgets the text so far, /quit or Ctrl-D leaves, Ctrl-C stops the model."


def read_line(interactive: bool) -> str | None:
    """The next line of the user; None at the end of the input."""
    if interactive:
        try:
            return input("> ")
        except EOFError:
            print()
            return None
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def continue_text(run: Run, text: str, tokens: int, sampling: Sampling, seed: int) -> str:
    """Prints the continuation as it comes and returns it; Ctrl-C ends it early."""
    pieces = []
    try:
        for piece in generate_text(run.model, run.tokenizer, text, tokens, sampling, seed):
            pieces.append(piece)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    print()
    return "".join(pieces)


def last_run() -> Path:
    """The run under runs/ that was saved last."""
    found = run_folders("runs")
    if not found:
        raise UserError("no run with a checkpoint under runs/: train one first with `make pretrain`")
    return found[-1]


def chat(run: Run, tokens: int, sampling: Sampling, seed: int) -> None:
    """The loop; every turn has its own seed, so that the same line twice goes on differently."""
    interactive = sys.stdin.isatty()
    print(f"{run.path}, step {run.step}: a base model. It continues your text; it has not learned to answer.\n{HELP}")
    text, turn = "", 0
    while True:
        try:
            line = read_line(interactive)
        except KeyboardInterrupt:
            print()
            continue
        if line is None or line.strip() == "/quit":
            return
        if line.strip() == "/reset":
            text = ""
            print("(forgotten)")
        elif line.strip().startswith("/"):
            print(HELP)
        elif line:
            text += line
            text += continue_text(run, text, tokens, sampling, seed + turn) + "\n"
            turn += 1


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m models.chat", description="Talk to a trained model.")
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder; default: the one saved last under runs/")
    add_sampling_arguments(parser)
    arguments = parser.parse_args(argv)

    def talk() -> None:
        sampling = sampling_from(arguments)
        path = Path(arguments.run) if arguments.run else last_run()
        run = load_run(path, arguments.checkpoint, settings=arguments.settings)
        chat(run, arguments.tokens, sampling, arguments.seed)

    return exit_code(talk)


if __name__ == "__main__":
    sys.exit(main())
