"""The tokenizer beside others: `python -m bench.tokenization --data zh=PATH en=PATH code=PATH`.

The same text, the same threads, one run; rivals are what is installed (`pip install -e '.[rivals]'`). One document in
ten is held out by hash. Every figure comes from a process of its own, and contestants take turns. Tables go to stderr,
one JSON line to stdout; `--write` keeps them under bench/results/.

- train: CPU seconds, wall time and peak memory. bytepiece and sentencepiece are slow: they get `--slow-mb` of the text,
  and ours is trained on that once more, for comparison with them.
- encode, decode: documents of 4 KB in one thread, CPU time. Cold: the first pass of a process; warm: later ones.
  tiktoken, gigatoken and tokie use the vocabulary that tokenizers' BPE gets in this run.
- compression: bytes per token of the held-out documents, and of the files given as --out-of-domain.
- adversarial: random strings, and texts that are hard for an automaton.
- model: a small model trained on ours and on tokenizers' BPE.
- projection: core-hours and memory for 60 GB.

bytepiece wants pyahocorasick built in a way of its own, which other programs cannot use: give it a Python of its own,
by --bytepiece-python or LOAM_BYTEPIECE_PYTHON.

    python -m venv bytepiece
    bytepiece/bin/pip install 'setuptools<81' wheel Cython numpy
    AHOCORASICK_BYTES=1 bytepiece/bin/pip install --no-build-isolation --no-binary pyahocorasick pyahocorasick
    bytepiece/bin/pip install --no-build-isolation bytepiece
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from argparse import Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from rich.console import Console

from bench.record import machine, write_results
from bench.side_by_side import available_cores
from bench.tokenization_contest import SLOW, Contest, ContestantError, Corpus, make_corpus
from bench.tokenization_goals import (PROJECTED_BYTES, PROJECTED_MEMORY, compression_table, goals, projected_memory,
                                      projection, same_ids, scaling, speeds_table)
from bench.tokenization_report import plot, tables
from bench.tokenization_rivals import CONTESTANTS
from bench.tokenization_text import (KINDS, RANDOM_STRINGS, Document, draw, is_held_out, read_documents,
                                     write_texts)
from bench.worker import Worker
from tokenizer import TokenizerError
from train.command import Parser, run_command

SECTIONS = ("train", "encode", "decode", "compression", "adversarial", "projection", "model")
VALIDATION_BYTES = 400_000
TABLE_WIDTH = 140


def parse(argv: list[str] | None) -> Namespace:
    parser = Parser(prog="python -m bench.tokenization", description=__doc__,
                    formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="[KIND=]PATH",
                        help=f"files and folders; KIND is one of {', '.join(KINDS)}, else it is recognised")
    parser.add_argument("--out-of-domain", nargs="+", default=[], metavar="FILE", help="text that is not like --data")
    parser.add_argument("--only", type=_names(SECTIONS), default=list(SECTIONS), metavar="A,B", help="some of: "
                        + ", ".join(SECTIONS))
    parser.add_argument("--rivals", type=_names(tuple(CONTESTANTS)[1:]), default=list(CONTESTANTS)[1:], metavar="A,B",
                        help="some of: " + ", ".join(list(CONTESTANTS)[1:]))
    parser.add_argument("--kinds", type=_names(KINDS), default=list(KINDS), metavar="A,B", help="to time")
    parser.add_argument("--vocab-size", type=int, default=32_000, help="pieces, the 256 bytes included")
    parser.add_argument("--threads", type=int, default=available_cores(), help="of each training; encoding has one")
    parser.add_argument("--train-mb", type=float, default=1e6, help="of the text, at most this for training")
    parser.add_argument("--slow-mb", type=float, default=10.0, help="for bytepiece and sentencepiece, and ours beside")
    parser.add_argument("--speed-mb", type=float, default=2.0, help="of each kind, to time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=3, help="warm ones in each round")
    parser.add_argument("--strings", type=int, default=RANDOM_STRINGS, help="random ones for adversarial")
    parser.add_argument("--model-vocab-size", type=int, default=4096)
    parser.add_argument("--minutes", type=float, default=2.0, help="for each model")
    parser.add_argument("--bytepiece-python", default=os.environ.get("LOAM_BYTEPIECE_PYTHON", ""), metavar="PYTHON")
    parser.add_argument("--work", metavar="DIR", help="keeps vocabularies there, with what their training cost, and "
                        "finds them again (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="results to bench/results/tokenization-*.json and .png")
    arguments = parser.parse_args(argv)
    for name in ("vocab_size", "model_vocab_size"):
        if getattr(arguments, name) < 257:
            parser.error(f"--{name.replace('_', '-')} must be at least 257: got {getattr(arguments, name)}")
    for name in ("threads", "rounds", "passes", "train_mb", "slow_mb", "speed_mb", "minutes"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0: got {getattr(arguments, name)}")
    return arguments


def _names(known: tuple[str, ...]):
    def parsed(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise ValueError(name)
        return names

    parsed.__name__ = "list of " + ", ".join(known)
    return parsed


def measure(arguments: Namespace, folder: Path, say) -> dict:
    """All sections asked for."""
    documents = list(read_documents(arguments.data))
    outside = {Path(name).stem: Path(name).read_bytes().decode("utf-8", "replace") for name in arguments.out_of_domain}
    sizes = [int(megabytes * 1e6) for megabytes in (arguments.train_mb, arguments.slow_mb, arguments.speed_mb)]
    corpus = make_corpus(folder / "text", documents, outside, *sizes)
    pythons = {"bytepiece": arguments.bytepiece_python} if arguments.bytepiece_python else {}
    contest = Contest(folder, arguments.vocab_size, arguments.threads, say, pythons)
    contest.find(["ours", *arguments.rivals])
    results = {"size": arguments.vocab_size, "versions": dict(contest.versions), "machine": machine(arguments.threads),
               "corpus": {"train": corpus.bytes[corpus.train], "small": corpus.bytes[corpus.small],
                          **{kind: corpus.bytes[path] for kind, path in corpus.held_out.items()}},
               "out_of_domain": list(corpus.out_of_domain)}
    say(f"{results['corpus']['train'] / 1e6:.1f} MB for training, held out "
        + ", ".join(f"{corpus.bytes[path] / 1e6:.1f} MB {kind}" for kind, path in corpus.held_out.items()))
    say("versions: " + ", ".join(f"{name} {version}" for name, version in contest.versions.items()))
    wanted = set(arguments.only)
    if wanted & {"train", "projection"}:
        results["training"] = training(contest, corpus)
    if "projection" in wanted:
        results["projection"] = projected(results["training"])
    kinds = [kind for kind in arguments.kinds if kind in corpus.speed]
    if wanted & {"encode", "decode"}:
        entries = contest.speeds(corpus, kinds, arguments.rounds, arguments.passes)
        results["speeds"] = speeds_table(entries)
        results["same_ids"] = {name: same_ids(entries, name, "tokenizers") for name in CONTESTANTS
                               if CONTESTANTS[name].folder == "tokenizers"}
        for row in entries:
            del row["checks"]
        results["rounds"] = entries
    if "encode" in wanted:
        results["two_processes"] = scaling(contest.two_processes(corpus, kinds, 5 * arguments.rounds, seconds=0.5))
    if "compression" in wanted:
        results["compression"] = compression_table(contest.compression(corpus), corpus.held_out)
    if "adversarial" in wanted:
        results["lossless"] = contest.lossless(corpus, arguments.strings)
        results["hard"] = hard(contest, corpus, int(arguments.speed_mb * 1e6), arguments.passes)
    if "model" in wanted:
        results["models"] = models(contest, corpus, documents, folder, arguments)
    results["missing"] = contest.missing
    results["goals"] = [{**goal._asdict(), "reached": goal.reached} for goal in goals(results)]
    return results


def training(contest: Contest, corpus: Corpus) -> dict[str, dict]:
    """What each trainer cost; "ours/small" is ours on the text of the slow ones."""
    results = {}
    pairs = [("ours", "ours", corpus.train), ("tokenizers", "tokenizers", corpus.train)]
    pairs += [("ours/small", "ours", corpus.small)] * (corpus.small != corpus.train)
    pairs += [(name, name, corpus.small) for name in SLOW]
    for label, name, text in pairs:
        found = contest.train(name, text) if name in contest.versions else None
        if found:
            results[label] = {**found, "bytes": corpus.bytes[text]}
    return results


def projected(costs: dict[str, dict]) -> dict:
    """The projection to 60 GB, and the arithmetic in lines."""
    from tokenizer.train.discover import SAMPLE_BYTES

    ours = costs["ours"]
    share = min(1.0, SAMPLE_BYTES / PROJECTED_BYTES)
    result = projection(ours["phases"], ours["bytes"], share)
    points = [(costs[name]["bytes"], costs[name]["peak_mb"]) for name in ("ours", "ours/small") if name in costs]
    memory = projected_memory(points, PROJECTED_MEMORY / 2**20, share * PROJECTED_BYTES)
    result["lines"] += [
        f"together {result['core_hours']:.2f} core-hours for {PROJECTED_BYTES / 1e9:.0f} GB",
        "memory: " + ", ".join(f"{mb:.0f} MiB at {size / 1e6:.0f} MB" for size, mb in memory["points"])
        + f"; a straight line to the {share * PROJECTED_BYTES / 1e9:.2f} GB that are looked at for candidates gives "
        f"{memory['straight_line_mb']:.0f} MiB, and --memory holds it at {memory['limit_mb']:.0f} MiB"]
    return {**result, "memory": memory}


def hard(contest: Contest, corpus: Corpus, size: int, passes: int) -> dict:
    """What a byte of each hard text costs ours."""
    contest.say("hard texts: ours")
    found = contest.ask("ours", "hard", folder=contest.vocabulary("ours", corpus), size=size, passes=passes,
                        texts=corpus.held_out.get("en") or next(iter(corpus.held_out.values())))
    english = found["ns"]["English"]
    return {**found, "english": english, "worst": max(found["ns"].values()) / english}


def models(contest: Contest, corpus: Corpus, documents: list[Document], folder: Path,
           arguments: Namespace) -> list[dict]:
    """A small model on each vocabulary of the smaller text, at once, each with its share of the threads."""
    validation = folder / "text" / "model-validation.jsonl"
    held = [document for document in documents if is_held_out(document.text)]
    write_texts(validation, [text for _, text in draw(held, VALIDATION_BYTES)])
    names = [name for name in ("ours", "tokenizers") if name in contest.versions]
    vocabularies = {name: contest.train(name, corpus.small, arguments.model_vocab_size) for name in names}
    workers: list[Worker] = []
    try:
        for name in filter(vocabularies.get, names):
            contest.say(f"a model for {arguments.minutes:g} minutes: {name}")
            workers.append(Worker(name, "bench.tokenization_model"))
            workers[-1].ask({"contestant": name, "folder": vocabularies[name]["folder"], "train": corpus.small,
                             "seed": 0, "validation": str(validation), "minutes": arguments.minutes,
                             "cache": str(folder / "cache"), "threads": max(1, arguments.threads // len(names))})
        for worker in workers:
            worker.send({})
        return [{"contestant": worker.name, **worker.receive()} for worker in workers]
    except RuntimeError as error:
        raise ContestantError(f"the model on {error}") from None
    finally:
        for worker in workers:
            worker.close()


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    console = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else TABLE_WIDTH)
    with tempfile.TemporaryDirectory(prefix="tokenization-") as temporary:
        folder = Path(arguments.work or temporary).absolute()
        try:
            results = measure(arguments, folder, lambda line: console.print(line, style="dim", markup=False))
        except (ContestantError, ValueError) as error:
            raise TokenizerError(str(error)) from None
    for table in tables(results):
        console.print(table)
    for line in results.get("projection", {}).get("lines", []):
        console.print(line)
    for name, found in results.get("lossless", {}).items():
        console.print(f"{name}: {found['changed']} of {found['strings']:,} random strings came back changed")
    if "two_processes" in results:
        console.print("two processes do " + ", ".join(f"{ratio:.2f}x ({kind})"
                                                      for kind, ratio in results["two_processes"].items()))
    print(json.dumps(results))
    if arguments.write:
        console.print(write_results("tokenization", results, lambda path: plot(results, path)))
    return 0


if __name__ == "__main__":
    run_command(main)
