"""What the commands share: flags that fail in one line, and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from tokenizer import TokenizerError
from train.errors import NonFiniteError, UserError


class Parser(argparse.ArgumentParser):
    """Reports a bad flag in one line, exit code 2."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the flags)\n")


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run `main` and leave with its code: 2 after bad input, 1 when the numbers went wrong, 130 after Ctrl-C."""
    sys.stdout.reconfigure(errors="replace")
    try:
        code = main()
        sys.stdout.flush()
    except (UserError, TokenizerError) as error:
        code = _fail(2, str(error))
    except NonFiniteError as error:
        code = _fail(1, str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _fail(2, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        code = _fail(130, "interrupted")
    sys.exit(code)


def _fail(code: int, message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code
