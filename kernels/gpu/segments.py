"""Rows added up by key: the gradient of picking rows, without atomics, the same sum every time.

Keys are sorted by a stable radix sort, so that rows of one key stand together in their first order. The sorted rows are
cut into chunks of equal length, whatever their keys: a program adds up the runs of one key in its chunk. A run that
crosses into other chunks leaves one partial sum per chunk, and a second kernel adds these up, so a key that is
everywhere takes no longer than any other.

Traffic of n rows of `width` elements with u different keys, s bytes each: n width s to read, 4 n width / CHUNK at most
for partial sums, written and read; u width elements to write, and to read first if there is something to add to. The
sort moves about 2 passes of 16 n bytes.
"""

from __future__ import annotations


import torch
import triton
import triton.language as tl

from .. import memory
from .launch import launch
from .rows import contiguous
from .tuning import tuned

DIGIT_BITS = 9  # of a pass: two passes do for tables of up to 2^18 - 1 rows
LEAST_BITS = 5  # histograms of fewer bins than a warp has threads are not worth a variant


@triton.jit
def _keys(keys, index, inside, rows, CHECKED: tl.constexpr):
    """Keys as int32, `rows` in place of those outside [0, rows), which come last and are no row of the table."""
    key = tl.load(keys + index, mask=inside, other=0)
    if not CHECKED:
        key = tl.where((key >= 0) & (key < rows), key, rows).to(tl.int32)
    return key


@triton.jit
def _count_digits(keys, counts, count, rows, SHIFT: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    digit = (_keys(keys, index, inside, rows, SHIFT > 0) >> SHIFT) & (BINS - 1)
    tl.store(counts + tl.program_id(0) * BINS + tl.arange(0, BINS), tl.histogram(digit, BINS, mask=inside))


@triton.jit
def _place(keys, order, counts, sorted_keys, sorted_order, count, rows, blocks,
           SHIFT: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Move this block's keys to where they belong by one digit, keeping the order of equal ones."""
    block = tl.program_id(0)
    bin = tl.arange(0, BINS)
    total = tl.zeros((BINS,), tl.int32)
    before = tl.zeros((BINS,), tl.int32)
    for start in range(0, blocks, TILE):
        other = start + tl.arange(0, TILE)
        found = tl.load(counts + other[:, None] * BINS + bin[None, :], mask=(other < blocks)[:, None], other=0)
        total += tl.sum(found, axis=0)
        before += tl.sum(tl.where((other < block)[:, None], found, 0), axis=0)
    first = tl.cumsum(total, axis=0) - total + before
    index = block * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    key = _keys(keys, index, inside, rows, SHIFT > 0)
    digit = (key >> SHIFT) & (BINS - 1)
    rank = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, BLOCK, TILE):
        rival = block * BLOCK + start + tl.arange(0, TILE)
        earlier = (rival[None, :] < index[:, None]) & (rival < count)[None, :]
        theirs = (_keys(keys, rival, rival < count, rows, SHIFT > 0) >> SHIFT) & (BINS - 1)
        rank += tl.sum((earlier & (theirs[None, :] == digit[:, None])).to(tl.int32), axis=1)
    place = tl.gather(first, digit, 0) + rank
    number = index if order is None else tl.load(order + index, mask=inside, other=0)
    tl.store(sorted_keys + place, key, mask=inside)
    tl.store(sorted_order + place, number, mask=inside)


@triton.jit
def _add_runs(values, keys, order, table, parts, count, rows, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
              CHUNK: tl.constexpr, AHEAD: tl.constexpr, ADD: tl.constexpr):
    """Sums of a chunk's runs: to the table where the run is whole, else to the chunk's two rows of `parts`.

    The first of the two takes a run that began in an earlier chunk, the second one that only goes on in the next.
    """
    chunk = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    used = column < WIDTH
    begin = chunk * CHUNK
    stop = tl.minimum(begin + CHUNK, count)
    came_in = tl.load(keys + begin - 1, mask=begin > 0, other=-1)
    goes_on = tl.load(keys + stop, mask=stop < count, other=-1)
    sums = tl.zeros((COLUMNS,), tl.float32)
    key = came_in
    for start in range(begin, stop, AHEAD):
        ahead = start + tl.arange(0, AHEAD)
        row = tl.load(order + ahead, mask=ahead < stop, other=0).to(tl.int64)
        inside = (ahead < stop)[:, None] & used[None, :]
        block = tl.load(values + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0).to(tl.float32)
        for step in tl.static_range(AHEAD):
            at = start + step
            there = at < stop
            before = key
            key = tl.load(keys + at, mask=there, other=-1)
            following = tl.load(keys + at + 1, mask=at + 1 < stop, other=-1)
            chosen = tl.sum(tl.where((ahead == at)[:, None], block, 0.0), axis=0)
            sums = tl.where(key == before, sums, 0.0) + chosen
            last = there & ((key != following) | (at == stop - 1))
            entered = key == came_in
            leaves = (at == stop - 1) & (key == goes_on)
            # the first run of a chunk may have begun before it; any later run of that key cannot exist
            part = tl.where(entered, 0, 1)
            whole = last & (key < rows) & ~(entered | leaves)
            place = table + key.to(tl.int64) * WIDTH + column
            result = sums
            if ADD:
                result += tl.load(place, mask=used & whole, other=0.0).to(tl.float32)
            tl.store(place, result.to(table.dtype.element_ty), mask=used & whole)
            tl.store(parts + (chunk * 2 + part).to(tl.int64) * WIDTH + column, sums,
                     mask=used & last & (key < rows) & (entered | leaves))


@triton.jit
def _join_runs(keys, table, parts, count, rows, chunks, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
               CHUNK: tl.constexpr, TILE: tl.constexpr, ADD: tl.constexpr):
    """The sum of a run that begins in this chunk and goes on in others."""
    chunk = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    used = column < WIDTH
    begin, stop = chunk * CHUNK, chunk * CHUNK + CHUNK
    key = tl.load(keys + stop - 1, mask=stop < count, other=-1)
    goes_on = (stop < count) & (tl.load(keys + stop, mask=stop < count, other=-2) == key) & (key < rows)
    entered = tl.load(keys + begin - 1, mask=begin > 0, other=-1) == key
    if goes_on & ~entered:
        sums = tl.load(parts + (chunk * 2 + 1).to(tl.int64) * WIDTH + column, mask=used, other=0.0)
        start, more = chunk + 1, True
        while more:
            other = start + tl.arange(0, TILE)
            same = (other < chunks) & (tl.load(keys + other * CHUNK, mask=other < chunks, other=-1) == key)
            inside = same[:, None] & used[None, :]
            found = tl.load(parts + (other * 2).to(tl.int64)[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
            sums += tl.sum(found, axis=0)
            start += TILE
            more = tl.sum(same.to(tl.int32), axis=0) == TILE
        place = table + key.to(tl.int64) * WIDTH + column
        if ADD:
            sums += tl.load(place, mask=used, other=0.0).to(tl.float32)
        tl.store(place, sums.to(table.dtype.element_ty), mask=used)


def sort(keys: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys in ascending order and where each came from, int32; equal keys stay in order, those outside [0, rows) come
    last, as `rows`."""
    count = keys.numel()
    options = tuned("sort", keys.dtype)
    size = options["BLOCK"]
    blocks = triton.cdiv(count, size)
    passes = triton.cdiv(rows.bit_length(), DIGIT_BITS)
    bits = max(LEAST_BITS, triton.cdiv(rows.bit_length(), passes))
    counts = memory.empty((blocks, 1 << bits), torch.int32, keys.device)
    order = None
    for number in range(passes):
        digit = {"SHIFT": number * bits, "BINS": 1 << bits, "BLOCK": size}
        launch(_count_digits, (blocks,), keys, counts, count, rows, **digit, num_warps=options["COUNT_WARPS"])
        found = [memory.empty((count,), torch.int32, keys.device) for _ in range(2)]
        launch(_place, (blocks,), keys, order, counts, *found, count, rows, blocks, **digit, TILE=options["TILE"],
               num_warps=options["num_warps"])
        keys, order = found
    return keys, order


def add_rows(values: torch.Tensor, keys: torch.Tensor, table: torch.Tensor, add: bool) -> None:
    """table[keys[i]] += values[i] in the order of i, or without `add` = for the keys there are; float32 in between.

    Args:
        values: (n, width). keys: int64 (n), those that are no row of the table count nothing. table: (rows, width),
            contiguous; without `add` it holds zeros.
    """
    count, width = values.shape
    if not values.numel():
        return
    values, rows = contiguous(values), len(table)
    keys, order = sort(contiguous(keys), rows)
    options = tuned("add_runs", values.dtype, width=width)
    chunk, warps = options["CHUNK"], options["num_warps"]
    columns = min(triton.next_power_of_2(width), options["COLUMNS"])
    chunks = triton.cdiv(count, chunk)
    grid = chunks, triton.cdiv(width, columns)
    parts = memory.empty((chunks, 2, width), torch.float32, values.device)
    sizes = {"WIDTH": width, "COLUMNS": columns, "CHUNK": chunk, "ADD": add, "num_warps": warps}
    launch(_add_runs, grid, values, keys, order, table, parts, count, rows, AHEAD=options["AHEAD"], **sizes)
    launch(_join_runs, grid, keys, table, parts, count, rows, chunks, TILE=options["TILE"], **sizes)
