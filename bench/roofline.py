"""What each kernel must cost on an H100, and how many of its warps a multiprocessor holds, without a GPU.

`python -m bench.roofline` prints both tables of bench/README.md; `--write` puts them there. The floor is the larger of
bytes / 3.0 TB/s and FLOPs / 798 TFLOP/s, what a copy and a bfloat16 product of 8192 x 8192 matrices reach on that card.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from .gpu_cases import CASES
from .gpu_timing import RESULTS, table

COPY_RATE = 3.0e12  # bytes per second
PRODUCT_RATE = 798e12  # FLOP/s
PAGE = Path(__file__).with_name("README.md")
TRAINING_DTYPE = "bfloat16"


@dataclass(frozen=True)
class Multiprocessor:
    """What a multiprocessor has: technical specifications per compute capability, CUDA programming guide.

    Args:
        shared_bytes: for all blocks together; each takes `reserved_bytes` more than it asks for.
    """

    warps: int
    blocks: int
    shared_bytes: int
    registers: int = 65_536
    reserved_bytes: int = 1024


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32, 167_936),
    "sm_89": Multiprocessor(48, 24, 102_400),
    "sm_90": Multiprocessor(64, 32, 233_472),
}


def floor(moved: float, flops: float = 0.0) -> float:
    """Seconds that a kernel takes at least, that moves so many bytes and makes so many FLOPs."""
    return max(moved / COPY_RATE, flops / PRODUCT_RATE)


def resident_warps(registers: int, shared_bytes: int, warps: int, arch: str = "sm_90") -> int:
    """Warps that a multiprocessor holds at a time, of blocks of `warps` warps; 0 if it does not hold one block.

    Args:
        registers: per thread; a warp gets them in units of 256, so a thread's are rounded up to 8, and a
            multiprocessor holds a multiple of 4 warps.
        shared_bytes: per block.
    """
    card = MULTIPROCESSORS[arch]
    by_registers = card.registers // (32 * -(-registers // 8) * 8) // 4 * 4 // warps
    by_shared = card.shared_bytes // (-(-shared_bytes // 128) * 128 + card.reserved_bytes)
    return warps * min(by_registers, by_shared, card.warps // warps, card.blocks)


def floors() -> list[list[object]]:
    """Case, phase, megabytes, GFLOP, floor in microseconds and what sets it, at a training step's sizes."""
    lines: list[list[object]] = []
    for case in CASES.values():
        sizes = SimpleNamespace(**case.sizes)
        dtype = TRAINING_DTYPE if TRAINING_DTYPE in case.dtypes else case.dtypes[0]
        itemsize = getattr(torch, dtype).itemsize
        moved = case.traffic(sizes, itemsize) if case.traffic else (0, 0)
        flops = case.flops(sizes) if case.flops else (0, 0)
        for phase, some_bytes, some_flops in zip(("forward", "backward"), moved, flops):
            if some_bytes or some_flops:
                bound = "copy" if some_bytes / COPY_RATE >= some_flops / PRODUCT_RATE else "products"
                lines.append([case.name, phase, dtype, round(some_bytes / 1e6) or None, round(some_flops / 1e9) or None,
                              round(floor(some_bytes, some_flops) * 1e6), bound])
    return lines


def occupancy(arch: str = "sm_90", dtype: str = TRAINING_DTYPE) -> list[list[object]]:
    """Kernel, case, warps per block, registers, shared memory, resident warps and their share, from aot.csv."""
    path = RESULTS / "aot.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        compiled = [line for line in csv.DictReader(file) if line["arch"] == arch and line["dtype"] == dtype]
    lines: list[list[object]] = []
    for line in compiled:
        registers, shared, warps = (int(line[name]) for name in ("registers", "shared_bytes", "warps"))
        resident = resident_warps(registers, shared, warps, arch)
        lines.append([line["kernel"], line["case"], warps, registers, shared, resident,
                      f"{resident / MULTIPROCESSORS[arch].warps:.0%}"])
    return lines


FLOOR_HEAD = ["case", "phase", "dtype", "MB", "GFLOP", "floor us", "set by"]
OCCUPANCY_HEAD = ["kernel", "case", "warps", "registers", "shared bytes", "resident warps", "of all"]


def markdown(head: list[str], lines: list[list[object]]) -> str:
    """A table whose columns of numbers are aligned to the right."""
    cells = [["" if value is None else f"{value:,}" if isinstance(value, int) else str(value) for value in line]
             for line in lines]
    numbers = [any(isinstance(line[i], int) or str(line[i]).endswith("%") for line in lines) for i in range(len(head))]
    rule = ["---:" if number else "---" for number in numbers]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *cells])


def filled(page: str) -> str:
    """The page with both tables as they are now, between their markers."""
    for name, text in {"floors": markdown(FLOOR_HEAD, floors()),
                       "occupancy": markdown(OCCUPANCY_HEAD, occupancy())}.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        _, marker, after = rest.partition(end)
        if not marker:
            raise ValueError(f"{PAGE.name} lacks the markers of {name}")
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the tables into bench/README.md")
    options = parser.parse_args(arguments)
    if options.write:
        from train.files import write_text

        write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")), durable=False)
        return 0
    print(table(FLOOR_HEAD, floors()))
    print()
    print(table(OCCUPANCY_HEAD, occupancy()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
