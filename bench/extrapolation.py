"""How far positions reach past the lengths of the training: `python -m bench.extrapolation`.

Small decoders (2 layers, width 64, 4 heads) that differ in nothing but their positions learn to copy, to reverse and to
add (bench/extrapolation_tasks.py) at lengths up to 32, and are tested up to 512: an answer counts if every id of it is
right. Learned positions are not defined past their table, which ends with the training. "jerry-whole" differs in more:
it is the seed's decoder.

A run is a process with one thread, and as many go at a time as there are cores. --seconds are CPU time of the training.
Other programs take away from it by the caches that all share, so a busy machine's runs make fewer steps; the tables
tell how many. Results are written after each run to DIR/results.json, and the same
command goes on where it stopped. Progress, tables and what holds go to stderr, one JSON line to stdout.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console

from bench.extrapolation_report import UNDEFINED, plot, tables, verdict
from bench.extrapolation_runs import KINDS, run_apart, settings
from bench.extrapolation_tasks import TASKS
from bench.record import machine, write_results
from bench.side_by_side import available_cores
from engine import UserError
from train.command import Parser, run_command
from train.files import write_text, write_whole

TABLE_WIDTH = 140
DEFAULT_OUT = "runs/extrapolation"


def parse(argv: list[str] | None) -> Namespace:
    parser = Parser(prog="python -m bench.extrapolation", description=__doc__,
                    formatter_class=RawDescriptionHelpFormatter)
    for name, known in (("tasks", TASKS), ("kinds", KINDS)):
        parser.add_argument(f"--{name}", type=_some_of(tuple(known)), default=list(known), metavar="A,B",
                            help=f"some of: {', '.join(known)}")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each kind and task")
    parser.add_argument("--seconds", type=float, default=45.0, help="of training, CPU time of each run")
    parser.add_argument("--out", type=Path, default=Path(DEFAULT_OUT), metavar="DIR", help=f"default: {DEFAULT_OUT}")
    parser.add_argument("--write", action="store_true", help="results and plot to bench/results/extrapolation-*")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1: got {arguments.seeds}")
    if not 0 < arguments.seconds <= 3600:
        parser.error(f"--seconds must be above 0 and at most 3600: got {arguments.seconds}")
    return arguments


def _some_of(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parsed(text: str) -> list[str]:
        chosen = list(dict.fromkeys(text.split(",")))
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise ArgumentTypeError(f"must be some of {', '.join(known)}: got {unknown[0]!r}")
        return chosen

    return parsed


def load(path: Path, wanted: dict) -> dict:
    """Results of earlier runs with the same settings, or none."""
    if not path.exists():
        return {"settings": wanted, "runs": {}}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        had = dict(results["settings"])
        runs = dict(results["runs"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} must be what an earlier run of this command wrote: {error!r}") from None
    for name, value in wanted.items():
        if had.get(name) != value:
            raise UserError(f"{path} must have been written with {name} {value}: got {had.get(name)}; "
                            "name another --out")
    return {"settings": wanted, "runs": runs}


def complete(results: dict, arguments: Namespace, save: Callable[[dict], None],
             say: Callable[[str], None]) -> list[str]:
    """Makes the runs that `results` lacks, each saved when it ends. Returns what went wrong, a line for each."""
    wanted = {f"{task}/{kind}/{seed}": (task, kind, seed) for seed in range(arguments.seeds) for task in arguments.tasks
              for kind in arguments.kinds}
    missing = {key: chosen for key, chosen in wanted.items() if key not in results["runs"]}
    say(f"{len(missing)} runs of {arguments.seconds:g} s to go, {len(wanted) - len(missing)} found")
    failures, executor = [], ThreadPoolExecutor(available_cores())
    try:
        begun = {executor.submit(run_apart, *chosen, arguments.seconds): key for key, chosen in missing.items()}
        for done, future in enumerate(as_completed(begun), 1):
            try:
                result = results["runs"][begun[future]] = future.result()
            except UserError as error:
                failures.append(str(error))
                say(str(error))
                continue
            save(results)
            say(f"{done} of {len(missing)}: {described(result)}")
    finally:
        executor.shutdown(cancel_futures=True)
    return failures


def described(result: dict) -> str:
    """One run in one line."""
    exact = ", ".join(f"{length}: {UNDEFINED if share is None else f'{share:.0%}'}"
                      for length, share in result["exact"].items())
    return (f"{result['task']}, {result['kind']}, seed {result['seed']}: {result['steps']:,} steps, "
            f"loss {result['loss']:.4f}; wholly right at {exact}")


def chosen_runs(results: dict, arguments: Namespace) -> dict:
    """The results asked for, in the order of the flags."""
    runs = {f"{task}/{kind}/{seed}": results["runs"].get(f"{task}/{kind}/{seed}") for task in arguments.tasks
            for kind in arguments.kinds for seed in range(arguments.seeds)}
    return {"settings": results["settings"], "runs": {key: run for key, run in runs.items() if run is not None}}


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else TABLE_WIDTH)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    if arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out must be a folder: got {arguments.out}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.json"
    results = load(path, settings(arguments.seconds))
    failures = complete(results, arguments, lambda found: write_text(path, json.dumps(found, indent=1)), say)
    shown = chosen_runs(results, arguments)
    if shown["runs"]:
        for table in tables(shown):
            console.print(table)
        shown["verdict"] = verdict(shown)
        say("\n".join(shown["verdict"]))
        write_whole(arguments.out / "exact_match.png", lambda path: plot(shown, path), durable=False)
        if arguments.write:
            kept = {"machine": machine(threads=1), **shown}
            say(write_results("extrapolation", kept, lambda path: plot(shown, path)))
        print(json.dumps(shown))
    return 1 if failures else 0


if __name__ == "__main__":
    run_command(main)
