"""What commands share, here and in train/: flags that fail in one line, and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from engine import UserError
from tokenizer import TokenizerError


class Parser(argparse.ArgumentParser):
    """Reports a bad flag in one line, exit code 2."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the flags)\n")


def exit_code(run: Callable[[], None]) -> int:
    """0 when `run` returns; 2 after bad input, 1 when the numbers went wrong, 130 after Ctrl-C, each told in one line.

    Characters that the terminal cannot show become question marks.
    """
    sys.stdout.reconfigure(errors="replace")
    try:
        run()
        sys.stdout.flush()
    except (UserError, TokenizerError) as error:
        return told(2, str(error))
    except FloatingPointError as error:
        return told(1, str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return told(130, "interrupted")
    return 0


def told(code: int, message: str) -> int:
    """Print an error in one line and hand its exit code back."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code
