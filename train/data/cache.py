"""The cache of tokenised corpora, keyed by the files' content, how they are read, and the tokenizer."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.errors import UserError
from tokenizer import Tokenizer
from train.data.build import Progress, available_cpus, build
from tokenizer.documents import ReadOptions, Source
from train.data.shards import VERSION, Shards
from train.files import fsync_path, write_text

REMEMBERED_HASHES = 200_000
SETTLED_NS = 2_000_000_000
NOT_WHOLE = (FileNotFoundError, NotADirectoryError, EOFError, ValueError, KeyError, TypeError, IndexError)


def default_cache_dir() -> Path:
    """$LOAM_CACHE, else $XDG_CACHE_HOME/loam, else ~/.cache/loam."""
    if os.environ.get("LOAM_CACHE"):
        return Path(os.environ["LOAM_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "loam"


def cached_shards(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    options: ReadOptions,
    cache_dir: str | os.PathLike[str] | None = None,
    workers: int = 0,
    on_progress: Progress | None = None,
) -> Shards:
    """The corpus as shards, from the cache or tokenised now.

    A folder of the cache appears whole or not at all. Processes that want the same corpus at the same time wait for
    the first; what a killed one left is removed by the next.

    Raises:
        UserError: as `build`, or the cache folder cannot be written, or a file changed while it was read.
    """
    with cache_folder(cache_dir) as root:
        content = {"version": VERSION, "tokenizer": tokenizer.fingerprint(), **identity(sources, options, root)}
        folder = root / content_key(content)
        shards = _opened(folder)
        if shards is None:
            with locked(root / f"{folder.name}.lock") as alone:
                shards = _opened(folder)
                if shards is None:
                    _clear(folder, leftovers=alone)
                    _build_whole(folder, sources, tokenizer, options, workers, on_progress)
                    shards = Shards(folder)
        return shards


@contextlib.contextmanager
def cache_folder(cache_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """The cache, made if it is not there. UserError when what is done with it fails for want of space or rights."""
    root = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield root
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{root}: cannot keep tokenised data here ({reason}); LOAM_CACHE names another place") from None


def _opened(folder: Path) -> Shards | None:
    try:
        return Shards(folder)
    except NOT_WHOLE:
        return None


def _clear(folder: Path, leftovers: bool) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if leftovers:
        for partial in folder.parent.glob(f"{folder.name}.partial-*"):
            shutil.rmtree(partial, ignore_errors=True)


def _build_whole(folder, sources, tokenizer, options, workers, on_progress) -> None:
    with becoming(folder) as partial:
        build(partial, sources, tokenizer, options, workers, on_progress)
        check_unchanged(sources)


@contextlib.contextmanager
def becoming(folder: Path) -> Iterator[Path]:
    """A folder of another name beside `folder`, which takes its place at the end, unless one is there; it does not stay
    otherwise."""
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        yield partial
        os.chmod(partial, 0o755)
        fsync_path(partial)
        with contextlib.suppress(OSError):
            os.rename(partial, folder)
        fsync_path(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_unchanged(sources: Sequence[Source]) -> None:
    """UserError when a file is not the one that was found: what was read of it may be of both."""
    for source in sources:
        if _changed(source):
            raise UserError(f"{source.path}: the file changed while it was read")


def _changed(source: Source) -> bool:
    try:
        status = os.stat(source.path)
    except OSError:
        return True
    return (status.st_size, status.st_mtime_ns) != (source.size, source.mtime_ns)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds the lock; yields False where the file system knows no locks, and goes on without."""
    with open(path, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def content_key(content: dict) -> str:
    """32 hexadecimal digits, a name for what follows from `content`."""
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def identity(sources: Sequence[Source], options: ReadOptions, root: Path) -> dict:
    """What decides which documents `sources` hold: their content, and how they are read."""
    hashes = _content_hashes(sources, root)
    return {
        "text_field": None if all(source.kind == "text" for source in sources) else options.text_field,
        "separator": options.document_separator if any(source.kind == "text" for source in sources) else None,
        "files": [(s.kind, s.compression, h) for s, h in zip(sources, hashes, strict=True)],
    }


def _content_hashes(sources: Sequence[Source], root: Path) -> list[str]:
    """Hashes of the files' bytes, remembered by path, size and time so that the next start reads none of them."""
    memory_path = root / "content-hashes.json"
    try:
        memory = json.loads(memory_path.read_text(encoding="utf-8"))
        memory = {path: (int(size), int(mtime), str(digest)) for path, (size, mtime, digest) in memory.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        memory = {}
    places = [os.path.abspath(source.path) for source in sources]

    def known(place: str, source: Source) -> bool:
        return memory.get(place, ())[:2] == (source.size, source.mtime_ns)

    unknown = [(place, source) for place, source in zip(places, sources, strict=True) if not known(place, source)]
    if not unknown:
        return [memory[place][2] for place in places]
    with ThreadPoolExecutor(available_cpus()) as pool:
        digests = pool.map(_content_hash, [source.path for _, source in unknown])
        fresh = {place: (s.size, s.mtime_ns, digest) for (place, s), digest in zip(unknown, digests, strict=True)}
    hashes = [(fresh.get(place) or memory[place])[2] for place in places]
    # A file written this instant may change again without a change of its time.
    settled_before = time.time_ns() - SETTLED_NS
    fresh = {place: entry for place, entry in fresh.items() if entry[1] < settled_before}
    if fresh:
        kept = memory if len(memory) < REMEMBERED_HASHES else {}
        write_text(memory_path, json.dumps({**kept, **fresh}), durable=False)
    return hashes


def _content_hash(path: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from None
    return digest.hexdigest()
