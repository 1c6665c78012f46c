"""facts.json of a run folder: what it was made of, what its text is, and where, when and how long it trained."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import kernels
from models.run_folder import FACTS
from train.checkpoint import versions
from train.config import Config
from train.files import write_text
from train.plan.machine import peak_bytes

if TYPE_CHECKING:
    from train.data import Part
    from train.inputs import Texts


def read_facts(run: Path) -> dict:
    """{"made": ..., "data": ..., "sessions": [...]}; all empty where nothing, or nothing readable, was written.

    "made" is what models.upcycle wrote: {"how": words, "command": text}.
    """
    try:
        found = json.loads((run / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    found = found if isinstance(found, dict) else {}
    return {"made": found.get("made") or {}, "data": found.get("data") or {}, "sessions": found.get("sessions") or []}


@contextlib.contextmanager
def recorded(run: Path, config: Config, texts: Texts, first_step: int) -> Iterator[None]:
    """Within this context the run trains: a session more in facts.json, completed at the end of the context.

    Args:
        first_step: steps taken before.
    """
    facts = read_facts(run)
    facts["data"] = data_facts(texts)
    session = {"started": _now(), "first_step": first_step, "arguments": sys.argv[1:],
               "threads": config.run.threads, "device": config.run.device, "machine": machine(config.run.device),
               "versions": versions()}
    facts["sessions"].append(session)
    begun, worked = time.monotonic(), time.process_time()
    _write(run, facts)
    try:
        yield
    finally:
        session |= {"ended": _now(), "seconds": round(time.monotonic() - begun, 1),
                    "cpu_seconds": round(time.process_time() - worked, 1), "peak_bytes": peak_bytes()}
        _write(run, facts)


def data_facts(texts: Texts) -> dict:
    """Tokens, documents and bytes of text of each source, for training and validation, and the sources' weights."""
    return {"train": {name: _part(part) for name, part in texts.train.items()},
            "validation": {name: _part(part) for name, part in texts.validation.items()},
            "weights": dict(texts.weights)}


def _part(part: Part) -> dict[str, int]:
    return {"tokens": part.tokens, "documents": part.documents, "bytes": part.bytes}


def machine(device: str) -> dict[str, object]:
    """What a run is trained on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"system": f"{platform.system()} {platform.machine()}", "processor": _processor(), "cores": cores,
             "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    if device == "cuda":
        found["card"] = torch.cuda.get_device_properties(0).name
        found["card_memory"] = kernels.gpu_memory()
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _write(run: Path, facts: dict) -> None:
    write_text(run / FACTS, json.dumps(facts, indent=1) + "\n", durable=False)
