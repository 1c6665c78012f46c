"""Write a run's report: python -m train.report RUN"""

from __future__ import annotations

from pathlib import Path

from train.command import Parser, run_command
from train.report import write_report


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m train.report", description="Write RUN/report.html, one file with all that a run "
                    "folder tells: configuration, data, curves, evaluation, samples, speed, memory, cost, and the "
                    "command to train it again. The run may be going on.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, such as runs/demo-1")
    print(write_report(parser.parse_args(argv).run))
    return 0


if __name__ == "__main__":
    run_command(main)
