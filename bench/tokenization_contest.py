"""What `bench.tokenization` measures, each figure in worker processes that take turns; the results are plain dicts."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.tokenization_rivals import CONTESTANTS
from bench.tokenization_text import (DOCUMENT_BYTES, HELD_OUT, KINDS, Document, cut, draw, is_held_out, utf8_size,
                                     write_texts)

ROOT = Path(__file__).parent.parent
SLOW = ("bytepiece", "sentencepiece")  # trained on the smaller text, and ours once more beside them
TRAINED = ("ours", "tokenizers", *SLOW)


class ContestantError(RuntimeError):
    """A worker that failed, and what it said."""


@dataclass
class Corpus:
    """Files by `write_texts` in the work folder. `train` and `small` are what vocabularies are trained on; `held_out`
    and `out_of_domain` whole documents by name; `speed` documents of 4 KB by kind. `bytes` of each file."""

    train: str
    small: str
    held_out: dict[str, str] = field(default_factory=dict)
    out_of_domain: dict[str, str] = field(default_factory=dict)
    speed: dict[str, str] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)

    def text_of(self, contestant: str) -> str:
        return self.small if contestant in SLOW else self.train


def make_corpus(folder: Path, documents: list[Document], out_of_domain: dict[str, str], train_bytes: int,
                small_bytes: int, speed_bytes: int) -> Corpus:
    """Splits the documents by hash and writes the files; `out_of_domain` is text by name."""
    folder.mkdir(parents=True, exist_ok=True)
    held = [document for document in documents if is_held_out(document.text)]
    train = draw([document for document in documents if not is_held_out(document.text)], train_bytes)
    if not held or not train:
        raise ValueError(f"the text must have enough documents for one in {HELD_OUT} to be held out, got "
                         f"{len(documents)}")
    small = train if utf8_size(text for _, text in train) <= small_bytes else draw(train, small_bytes, seed=1)
    corpus = Corpus("", "")

    def write(name: str, texts: list[str]) -> str:
        path = folder / f"{name}.jsonl"
        corpus.bytes[str(path)] = write_texts(path, texts)
        return str(path)

    corpus.train = write("train", [text for _, text in train])
    corpus.small = corpus.train if small is train else write("small", [text for _, text in small])
    for kind in KINDS:
        texts = [text for of_kind, text in held if of_kind == kind]
        if texts:
            corpus.held_out[kind] = write(f"held-{kind}", texts)
            corpus.speed[kind] = write(f"speed-{kind}", cut(texts, DOCUMENT_BYTES, speed_bytes))
    for i, (name, text) in enumerate(out_of_domain.items()):
        corpus.out_of_domain[name] = write(f"out-{i}", [text])
    return corpus


def ask(contestant: str, job: str, cores: int = 1, pythons: dict[str, str] | None = None, **arguments) -> dict:
    """One job in a new process with `cores` threads; ContestantError when it fails."""
    process = start(contestant, job, cores, pythons, **arguments)
    return answer(contestant, process)


def start(contestant: str, job: str, cores: int = 1, pythons: dict[str, str] | None = None,
          **arguments) -> subprocess.Popen:
    count = str(cores)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOAM_THREADS": count, "OMP_NUM_THREADS": count,
                   "NUMBA_NUM_THREADS": count, "RAYON_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "true"}
    process = subprocess.Popen([(pythons or {}).get(contestant, sys.executable), "-m", "bench.tokenization_worker"],
                               text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               cwd=ROOT, env=environment)
    print(json.dumps({"contestant": contestant, "do": job, **arguments}), file=process.stdin, flush=True)
    return process


def answer(contestant: str, process: subprocess.Popen) -> dict:
    output, errors = process.communicate()
    lines = output.splitlines()
    found = json.loads(lines[-1]) if lines else {"error": (errors.strip() or "no answer").splitlines()[-1]}
    if "error" in found:
        raise ContestantError(found["error"].splitlines()[0])
    return found


def _line(contestant: str, process: subprocess.Popen) -> str:
    """The next line of a worker that is not done yet."""
    line = process.stdout.readline()
    if not line or line.startswith("{"):
        process.communicate()
        reason = json.loads(line)["error"] if line else f"its worker ended with code {process.returncode}"
        raise ContestantError(f"{contestant}: {reason}")
    return line


@dataclass
class Contest:
    """The contestants that are there, and their vocabularies.

    Attributes:
        say: told in a line what is going on.
        pythons: contestant -> the Python that runs it, where it is not this one.
        missing: contestant -> why it does not take part.
        trained: (contestant, text file) -> what `train` answered, and `folder`.
    """

    folder: Path
    size: int
    train_threads: int
    say: Callable[[str], None]
    pythons: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    trained: dict[tuple[str, str], dict] = field(default_factory=dict)

    def find(self, wanted: list[str]) -> None:
        """Who is installed. Ours is always there."""
        for name in wanted:
            try:
                version = self.ask(name, "versions")["version"]
                failure = f"not installed: pip install {CONTESTANTS[name].package}"
            except (ContestantError, OSError) as error:
                version, failure = None, str(error)
            if version or name == "ours":
                self.versions[name] = version or "this one"
            else:
                self.leave_out(name, failure)

    def leave_out(self, name: str, reason: str) -> None:
        """ContestantError for ours, without which there is no contest."""
        if name == "ours":
            raise ContestantError(f"ours: {reason}")
        self.missing[name] = reason
        self.versions.pop(name, None)
        self.say(f"{name} takes no part: {reason}")

    def ask(self, name: str, job: str, cores: int = 1, **arguments) -> dict:
        return ask(name, job, cores, self.pythons, **arguments)

    def train(self, name: str, text: str, size: int = 0) -> dict | None:
        """A vocabulary, once for each text; None when the trainer fails, which leaves the contestant out.

        A training is found again in the work folder, with the cost that was measured then.
        """
        size = size or self.size
        digest = hashlib.blake2b(Path(text).read_bytes(), digest_size=6).hexdigest()
        folder = self.folder / f"{name}-{size}-{digest}"
        kept = folder / "training.json"
        if (name, text) in self.trained and self.trained[name, text]["size"] == size:
            return self.trained[name, text]
        try:
            if kept.exists():
                result = {**json.loads(kept.read_text()), "kept": True}
            else:
                self.say(f"training {name}: {size:,} pieces")
                result = self.ask(name, "train", self.train_threads, threads=self.train_threads, texts=text,
                                  size=size, folder=str(folder))
                result.update(size=size, version=self.versions[name], folder=str(folder))
                kept.write_text(json.dumps(result))
        except ContestantError as error:
            self.leave_out(name, f"training failed, {error}")
            return None
        self.trained[name, text] = result
        return result

    def vocabulary(self, name: str, corpus: Corpus) -> str | None:
        """The folder of a contestant's vocabulary, trained now if need be."""
        trainer = CONTESTANTS[name].folder or name
        if trainer not in self.versions:
            if name in self.versions:
                self.leave_out(name, f"its vocabulary comes from {trainer}")
            return None
        result = self.train(trainer, corpus.text_of(trainer))
        return result["folder"] if result else None

    def speeds(self, corpus: Corpus, kinds: list[str], rounds: int, passes: int) -> list[dict]:
        """Encoding and decoding by kind: one entry for a contestant's process in a round."""
        entries = []
        for kind in kinds:
            for turn in range(rounds):
                names = list(self.versions)
                for name in names if turn % 2 == 0 else reversed(names):
                    folder = self.vocabulary(name, corpus)
                    if folder is None:
                        continue
                    self.say(f"speed, {kind}, round {turn + 1} of {rounds}: {name}")
                    try:
                        found = self.ask(name, "speed", folder=folder, texts=corpus.speed[kind], passes=passes)
                    except ContestantError as error:
                        self.leave_out(name, str(error))
                        continue
                    entries.append({"kind": kind, "round": turn, "contestant": name,
                                    "bytes": corpus.bytes[corpus.speed[kind]], **found})
        return entries

    def two_processes(self, corpus: Corpus, kinds: list[str], turns: int, seconds: float) -> list[dict]:
        """MB per second of one process of ours and of two at once, in turns of `seconds`."""
        entries = []
        folder = self.vocabulary("ours", corpus)
        for kind in kinds:
            self.say(f"one process and two, {kind}")
            workers = [start("ours", "throughput", folder=folder, texts=corpus.speed[kind], seconds=seconds)
                       for _ in range(2)]
            for worker in workers:
                _line("ours", worker)
            for turn in range(turns):
                for at_work in (workers[turn % 2 :][:1], workers):
                    for worker in at_work:
                        print("go", file=worker.stdin, flush=True)
                    rate = sum(float(_line("ours", worker)) for worker in at_work)
                    entries.append({"kind": kind, "round": turn, "processes": len(at_work),
                                    "mb_per_second": rate * corpus.bytes[corpus.speed[kind]] / 1e6})
            for worker in workers:
                answer("ours", worker)
        return entries

    def compression(self, corpus: Corpus) -> list[dict]:
        """Tokens of held-out text for each trainer on each text that it was trained on."""
        entries = []
        texts = {**corpus.held_out, **corpus.out_of_domain}
        pairs = [("ours", corpus.train), ("tokenizers", corpus.train)]
        pairs += [("ours", corpus.small)] * (corpus.small != corpus.train)
        pairs += [(name, corpus.small) for name in SLOW]
        for name, text in pairs:
            trained = self.train(name, text) if name in self.versions else None
            if trained is None:
                continue
            self.say(f"compression: {name}")
            tokens = self.ask(name, "count", folder=trained["folder"], texts=texts)
            entries.append({"contestant": name, "text": "train" if text == corpus.train else "small",
                            "pieces": trained["pieces"], "tokens": tokens,
                            "bytes": {label: corpus.bytes[path] for label, path in texts.items()}})
        return entries

    def lossless(self, corpus: Corpus, strings: int) -> dict[str, dict]:
        """Random strings that came back changed, for each contestant."""
        results = {}
        for name in list(self.versions):
            folder = self.vocabulary(name, corpus)
            if folder is None:
                continue
            self.say(f"{strings:,} random strings: {name}")
            try:
                results[name] = self.ask(name, "lossless", folder=folder, strings=strings)
            except ContestantError as error:
                self.leave_out(name, str(error))
        return results
