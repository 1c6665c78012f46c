"""What the tokenizer's commands share: flags that fail in one line, and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from tokenizer.interface import TokenizerError


class Parser(argparse.ArgumentParser):
    """Reports a bad flag in one line, exit code 2."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the flags)\n")


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and leave with its code, None being 0; 2 after bad input, 130 after Ctrl-C, each told in one line.

    Characters that the terminal cannot show become question marks.
    """
    sys.stdout.reconfigure(errors="replace")
    try:
        code = main()
        sys.stdout.flush()
    except TokenizerError as error:
        code = told(2, str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = told(2, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        code = told(130, "interrupted")
    sys.exit(code)


def told(code: int, message: str) -> int:
    """Print an error in one line and hand its exit code back."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code
