"""What the commands of training share; their flags fail as those of models/ do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from models.command import Parser, told
from tokenizer import TokenizerError
from train.errors import NonFiniteError, UserError

__all__ = ["Parser", "run_command"]


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run `main` and leave with its code: 2 after bad input, 1 when the numbers went wrong, 130 after Ctrl-C."""
    sys.stdout.reconfigure(errors="replace")
    try:
        code = main()
        sys.stdout.flush()
    except (UserError, TokenizerError) as error:
        code = told(2, str(error))
    except NonFiniteError as error:
        code = told(1, str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = told(2, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        code = told(130, "interrupted")
    sys.exit(code)
