"""The cut of a text into words that a byte n-gram model likes best.

bytepiece's way (https://github.com/bojone/bytepiece, "novel word discovery"): a byte that starts a word has nothing
before it, the second one byte before it, and from the sixth on five. Starting a word costs nothing itself; what it
costs is forgetting. The best cut is found by dynamic programming over the position within a word, at most the sixth.
No word starts inside a character of UTF-8, and one starts wherever the caller forces it.

Nodes are looked up first, in four places of the text side by side, so that one goes on while others wait for memory.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tokenizer.automaton import double_array
from tokenizer.compiled import compiled
from tokenizer.train.language_model import BYTES, COST, FIRST, LAST, ROOT, SUFFIX, LanguageModel
from tokenizer.train.ngrams import ORDER

NEVER = 1 << 60
FEW = 8  # children that are looked through one by one
NO_BYTE, BASE_SHIFT = BYTES, np.uint64(9)  # of a step: the byte stands in the lower bits
BYTE_MASK = np.uint64((1 << 9) - 1)
_TOGETHER = 64  # steps side by side that are worth it


class Steps(NamedTuple):
    """A model's nodes as a double array (automaton.py), for quick steps. A node is known by its base alone; one without
    children goes on as the longest that ends it and has some, so it has its base.

    Attributes:
        steps: uint64 [places]: the byte that leads into the node that stands there (9 bits), the base of its children.
        fallback: uint32 [places], by base: the base to try when a byte does not follow.
        costs: int32 [places, 5]: what the byte costs after 1, 2, ... bytes before it.
        root: the root's base.
    """

    steps: np.ndarray
    fallback: np.ndarray
    costs: np.ndarray
    root: int


def steps_of(model: LanguageModel) -> Steps:
    """The steps of a model."""
    first, last = 1, 1 + BYTES
    for _ in range(ORDER - 1):
        first, last = last, max(last, int(model.rows[first:last, LAST].max(initial=0)))
    children = np.zeros(len(model.rows), np.int64)
    children[:first] = model.rows[:first, LAST] - model.rows[:first, FIRST]
    children[ROOT] = BYTES
    nodes = np.arange(len(model.rows), dtype=np.int32)
    starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(children)))
    place, bases, used = double_array(nodes, nodes[1:], starts, model.last_byte.astype(np.int32))
    steps, fallback = np.full(used, NO_BYTE, np.uint64), np.zeros(used, np.uint32)
    costs = np.zeros((used, ORDER - 1), np.int32)
    costs[place] = model.rows[:, COST:]
    parents = np.append(ROOT, np.repeat(nodes, children))
    _fill_steps(model.rows, model.last_byte, parents, place, bases, steps, fallback)
    return Steps(steps, fallback, costs, int(bases[ROOT]))


@compiled
def _fill_steps(nodes, last_byte, parents, place, bases, steps, fallback):
    with_children = np.zeros(len(nodes), np.int64)
    for node in range(1, len(nodes)):
        above = with_children[nodes[node, SUFFIX]]
        if bases[node] > 0:
            with_children[node] = node
            fallback[bases[node]] = bases[above]
        else:  # a whole n-gram has the children and the suffix of its suffix
            has_some = nodes[node, LAST] > nodes[node, FIRST]
            with_children[node] = parents[nodes[node, FIRST]] if has_some else above
        base = np.uint64(bases[with_children[node]])
        steps[place[node]] = np.uint64(last_byte[node]) | base << BASE_SHIFT


def word_starts(model: LanguageModel, text: np.ndarray, forced: np.ndarray, most_bytes: int,
                steps: Steps | None = None) -> np.ndarray:
    """bool [bytes]: where the words of the cheapest cut begin.

    Words longer than `most_bytes` are cut once more, by the same model under that bound.

    Args:
        text: uint8 [bytes], UTF-8.
        forced: bool [bytes], where a word must begin.
        steps: `steps_of` the model, made here if not given.
    """
    starts, places = np.zeros(len(text), bool), np.empty(len(text), np.uint32)
    steps = steps or steps_of(model)
    _look_up(steps.steps, steps.fallback, steps.root, text, forced, places)
    _segment(steps.costs, model.cost, places, text, forced, starts)
    _cut_again(*model, text, starts, most_bytes)
    return starts


@compiled
def _look_up(steps, fallback, root, text, forced, places):
    """Writes where the node of each byte stands: the longest n-gram of the model that ends there, and begins nowhere
    before a forced start."""
    part = len(text) // 4
    root = np.uint64(root)
    at_b, at_c, at_d = _forced_from(forced, part), _forced_from(forced, 2 * part), _forced_from(forced, 3 * part)
    end_a, end_b, end_c, end_d = at_b, at_c, at_d, np.uint64(len(text))
    at_a = np.uint64(0)
    base_a = base_b = base_c = base_d = root
    tries = min(min(end_a - at_a, end_b - at_b), min(end_c - at_c, end_d - at_d))
    while tries > _TOGETHER:
        for _ in range(tries):
            base_a, at_a = _try(steps, fallback, root, text, forced, base_a, at_a, places)
            base_b, at_b = _try(steps, fallback, root, text, forced, base_b, at_b, places)
            base_c, at_c = _try(steps, fallback, root, text, forced, base_c, at_c, places)
            base_d, at_d = _try(steps, fallback, root, text, forced, base_d, at_d, places)
        tries = min(min(end_a - at_a, end_b - at_b), min(end_c - at_c, end_d - at_d))
    while at_a < end_a:
        base_a, at_a = _try(steps, fallback, root, text, forced, base_a, at_a, places)
    while at_b < end_b:
        base_b, at_b = _try(steps, fallback, root, text, forced, base_b, at_b, places)
    while at_c < end_c:
        base_c, at_c = _try(steps, fallback, root, text, forced, base_c, at_c, places)
    while at_d < end_d:
        base_d, at_d = _try(steps, fallback, root, text, forced, base_d, at_d, places)


@compiled
def _forced_from(forced, at):
    """The first place from `at` on where a word must start; else the end."""
    while at < len(forced) and not forced[at]:
        at += 1
    return np.uint64(at)


@compiled
def _try(steps, fallback, root, text, forced, base, at, places):
    """Take the byte at `at`, or fall back and stay there, without a branch, which would be mispredicted often."""
    base = root if forced[at] else base
    byte = np.uint64(text[at])
    step, below = steps[base + byte], np.uint64(fallback[base])
    places[at] = base + byte
    taken = step & BYTE_MASK == byte
    return step >> BASE_SHIFT if taken else below, at + np.uint64(taken)


@compiled
def _segment(costs, cost, places, text, forced, starts):
    """Of equally cheap words that end at a byte the one whose last byte is nearest its start is taken."""
    room = 1 << 12
    start_of_best = np.empty(room, np.int32)
    origin = 0
    while origin < len(text):
        end = origin + 1
        while end < len(text) and not forced[end]:
            end += 1
        while end - origin > room:
            room *= 2
            start_of_best = np.empty(room, np.int32)
        # c0..c5: the cheapest path to here whose word began 0, 1, 2, 3, 4, or 5 and more bytes before; s0..s5: where.
        best, best_start = np.int64(0), 0
        c0 = c1 = c2 = c3 = c4 = c5 = np.int64(NEVER)
        s1 = s2 = s3 = s4 = s5 = 0
        s0 = 0
        for at in range(end - origin):
            byte, place = text[origin + at], np.uint64(places[origin + at])
            if c4 <= c5:
                c5, s5 = c4, s4
            c5 += costs[place, 4]
            c4, s4 = c3 + costs[place, 3], s3
            c3, s3 = c2 + costs[place, 2], s2
            c2, s2 = c1 + costs[place, 1], s1
            c1, s1 = c0 + costs[place, 0], s0
            c0, s0 = best + cost[byte], at
            if at > 0 and byte & 0xC0 == 0x80:
                c0 = np.int64(NEVER)
            best, best_start = c0, s0
            if c1 < best:
                best, best_start = c1, s1
            if c2 < best:
                best, best_start = c2, s2
            if c3 < best:
                best, best_start = c3, s3
            if c4 < best:
                best, best_start = c4, s4
            if c5 < best:
                best, best_start = c5, s5
            start_of_best[at] = best_start
        at = end - origin
        while at > 0:
            at = start_of_best[at - 1]
            starts[origin + at] = True
        origin = end


@compiled
def _next(rows, last_byte, node, byte):
    while node != ROOT:
        low, high = np.int64(rows[node, FIRST]), np.int64(rows[node, LAST])
        while high - low > FEW:
            middle = (low + high) >> 1
            if last_byte[middle] <= byte:
                low = middle
            else:
                high = middle
        while low < high:
            if last_byte[low] == byte:
                return low
            low += 1
        node = np.int64(rows[node, SUFFIX])
    return 1 + np.int64(byte)


@compiled
def _cut_again(rows, last_byte, cost, text, starts, most):
    """Cuts words of more than `most` bytes, adding to `starts`: the cheapest way of all words of at most that length,
    and of equally cheap last words the longest."""
    open_costs = np.empty(most, np.int64)  # of the cheapest way here whose last word began at a place, modulo `most`
    origin = 0
    while origin < len(text):
        end = origin + 1
        while end < len(text) and not starts[end]:
            end += 1
        if end - origin > most:
            start_of_best = np.empty(end - origin, np.int32)
            node = np.int64(ROOT)
            best = np.int64(0)
            for at in range(end - origin):
                byte = text[origin + at]
                node = _next(rows, last_byte, node, byte)
                open_costs[at % most] = np.int64(NEVER) if byte & 0xC0 == 0x80 else best
                first = max(0, at - most + 1)
                best = np.int64(2 * NEVER)
                for start in range(first, at + 1):
                    before = at - start
                    step = cost[byte] if before == 0 else rows[node, COST - 1 + min(before, ORDER - 1)]
                    open_costs[start % most] += step
                    if open_costs[start % most] < best:
                        best = open_costs[start % most]
                        start_of_best[at] = start
            at = end - origin
            while at > 0:
                at = start_of_best[at - 1]
                starts[origin + at] = True
        origin = end
