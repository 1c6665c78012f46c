"""The memory of this machine and of this process."""

from __future__ import annotations

import os
from pathlib import Path

import kernels

GPU_RESERVED = 800 << 20  # bytes; what CUDA and its libraries take before the first tensor


def available_memory(device: str = "cpu") -> int:
    """Bytes that this process may hold altogether, what it holds already included.

    On the CPU what the system says is free, but not more than a control group (a container) leaves; on a GPU its
    memory less 0.8 GB for CUDA itself, other processes there not being seen.
    """
    if device != "cpu":
        return max(0, kernels.gpu_memory() - GPU_RESERVED)
    return min([_system_free(), *_control_groups_free()]) + resident_bytes()


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most that this process has held so far."""
    return _status("VmHWM")


def _status(field: str) -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[field].split()[0]) * 1024
    except (OSError, KeyError):
        import resource

        # Not used on Linux, where it starts from the parent's size; macOS counts bytes, and knows the peak only.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _system_free() -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _control_groups_free(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What each control group that this process is in leaves free; file pages that can be dropped count as free."""
    try:
        groups = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in groups:
        first = controllers == "memory"
        if controllers and not first:
            continue
        base = root / "memory" if first else root
        names = (("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file") if first
                 else ("memory.max", "memory.current", "inactive_file"))
        parts = Path(path.lstrip("/")).parts
        folders = [base.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
        found += [free for folder in folders if (free := _group_free(folder, *names)) is not None]
    return found


def _group_free(folder: Path, limit: str, usage: str, dropped: str) -> int | None:
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        pages = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if most == "max" else max(0, int(most) - used + int(pages.get(dropped, 0)))
