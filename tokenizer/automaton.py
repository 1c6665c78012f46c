"""An Aho-Corasick automaton over bytes: all pieces that end at each position of a text, longest first, in one pass.

Aho and Corasick, "Efficient string matching: an aid to bibliographic search" (1975). The trie is a double array (Aoe,
"An efficient digital search algorithm by using a double-array structure", 1989): the child of state s by byte c is
base[s] + c, if that state's parent is s. What a search needs of a state stands in one row of 32 bytes; best_path.py
reads tables made from the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenizer.compiled import compiled
from tokenizer.interface import TokenizerError

# Columns of a row. LINK, LENGTH, COST and PIECE describe outputs: the longest piece that ends in a state is its own
# when LENGTH > 0; LINK is the state of the next shorter one, 0 after the last. BASE is 0 for states without children;
# no two other states share one.
BASE, PARENT, FAIL, LINK, LENGTH, COST, PIECE, DEPTH = range(8)
COLUMNS = 8
LAYOUT = 4  # of rows and of best_path.Tables; saved tables of another layout are made anew
BYTES = 256
ROOT = 0
CROWDED, FURTHER_ON = 1, 8  # a search over more than so many words of bits lets the next start so many gaps further on
MOST_BYTES = 254  # of a piece: best_path.py keeps lengths in eight bits
MOST_STATES = 1 << 27
_ONE, _LAST_BIT, _ALL = np.uint64(1), np.uint64(63), np.uint64((1 << 64) - 1)
_SPARE = BYTES // 64 + 2  # words of bits beyond the base that is tried


def build(pieces: Sequence[bytes], costs: np.ndarray) -> np.ndarray:
    """The automaton of `pieces`, which must hold all 256 bytes, without repetition.

    Args:
        costs: int32 [pieces], what using a piece costs.
    Returns:
        int32 [states, 8], rows as the columns above say; state 0 is the root, which has a child for every byte.
    Raises:
        TokenizerError: a byte is missing, a piece is empty, too long or there twice, or there are too many.
    """
    pieces = list(pieces)
    order = sorted(range(len(pieces)), key=pieces.__getitem__)
    lengths = np.fromiter((len(pieces[i]) for i in order), np.int64, len(pieces))
    text = np.frombuffer(b"".join(pieces[i] for i in order), np.uint8)
    ends = np.cumsum(lengths)
    parent, byte, piece, depth = _trie(text, ends - lengths, lengths, np.array(order, np.int32))
    if (lengths == 0).any() or np.count_nonzero(piece >= 0) != len(pieces):
        raise TokenizerError("a vocabulary's pieces must be different and not empty")
    if lengths.max() > MOST_BYTES:
        raise TokenizerError(f"a vocabulary's pieces must have at most {MOST_BYTES} bytes: got {lengths.max()}")
    if len(parent) > MOST_STATES // 2:
        raise TokenizerError(f"a vocabulary's pieces must have at most {MOST_STATES // 2:,} different beginnings: got "
                             f"{len(parent):,}")
    if np.count_nonzero((depth == 1) & (piece >= 0)) != BYTES:
        raise TokenizerError("a vocabulary must hold all 256 bytes")
    by_depth = np.argsort(depth.astype(np.uint8), kind="stable").astype(np.int32)
    children, starts = _children(parent)
    place, bases, used = double_array(by_depth, children, starts, byte)
    return _rows(place, bases, used, by_depth, parent, byte, piece, depth, np.asarray(costs, np.int32))


@compiled
def _trie(text, starts, lengths, pieces):
    """Nodes of the trie of sorted keys, a parent before its children, siblings in the order of their bytes."""
    longest = 1
    total = 1
    for i in range(len(starts)):
        longest = max(longest, lengths[i])
        total += lengths[i]
    parent = np.full(total, -1, np.int32)
    byte = np.zeros(total, np.int32)
    piece = np.full(total, -1, np.int32)
    depth = np.zeros(total, np.int32)
    path = np.zeros(longest + 1, np.int32)
    nodes = 1
    for i in range(len(starts)):
        shared = 0
        if i > 0:
            most = min(lengths[i], lengths[i - 1])
            while shared < most and text[starts[i] + shared] == text[starts[i - 1] + shared]:
                shared += 1
        for j in range(shared, lengths[i]):
            parent[nodes], byte[nodes], depth[nodes] = path[j], text[starts[i] + j], j + 1
            path[j + 1] = nodes
            nodes += 1
        piece[path[lengths[i]]] = pieces[i]
    return parent[:nodes], byte[:nodes], piece[:nodes], depth[:nodes]


@compiled
def _children(parent):
    """The nodes below the root, those with the same parent side by side, and where those of each node begin."""
    starts = np.zeros(len(parent) + 1, np.int64)
    for node in range(1, len(parent)):
        starts[parent[node] + 1] += 1
    starts = np.cumsum(starts)
    free = starts.copy()
    children = np.empty(len(parent) - 1, np.int32)
    for node in range(1, len(parent)):
        children[free[parent[node]]] = node
        free[parent[node]] += 1
    return children, starts


@compiled
def double_array(by_depth, children, starts, byte):
    """Where each node stands, and the base of its children: the first gap that fits them all, shallow nodes first.

    Gaps and bases that are free are bits, so 64 bases are tried at once. Leaves have base 0, other bases are used once.
    """
    nodes = len(by_depth)
    place, bases = np.zeros(nodes, np.int32), np.zeros(nodes, np.int32)
    gaps = np.full((2 * nodes >> 6) + _SPARE, _ALL)
    free = gaps.copy()
    gaps[0] = free[0] = _ALL ^ _ONE
    head, used = 1, 1
    for node in by_depth:
        first, last = starts[node], starts[node + 1]
        if first == last:
            continue
        while gaps[head >> 6] >> np.uint64(head & 63) == 0:
            head = (head | 63) + 1
        head += _zeros(gaps[head >> 6] >> np.uint64(head & 63))
        lowest = byte[children[first]]
        base = max(1, head - lowest)
        word, fits = base >> 6, _ALL << np.uint64(base & 63)
        tried = word
        while True:
            if word + _SPARE > len(gaps):
                gaps = np.concatenate((gaps, np.full(len(gaps), _ALL)))
                free = np.concatenate((free, np.full(len(free), _ALL)))
            fits &= free[word]
            k = first
            while fits != 0 and k < last:
                at = (word << 6) + byte[children[k]]
                shift = np.uint64(at & 63)
                fits &= gaps[at >> 6] >> shift | gaps[(at >> 6) + 1] << _ONE << (_LAST_BIT - shift)
                k += 1
            if fits != 0:
                break
            word, fits = word + 1, _ALL
        if word - tried > CROWDED:
            head += FURTHER_ON
        base = (word << 6) + _zeros(fits)
        bases[node], free[word] = base, free[word] ^ (fits & (~fits + _ONE))
        for k in range(first, last):
            at = base + byte[children[k]]
            place[children[k]] = at
            gaps[at >> 6] ^= _ONE << np.uint64(at & 63)
        used = max(used, base + BYTES)
    return place, bases, used


@compiled
def _zeros(bits):
    """How many zeros are below the lowest one of `bits`, which is not 0."""
    count = 0
    for step in (32, 16, 8, 4, 2, 1):
        if bits & ((_ONE << np.uint64(step)) - _ONE) == 0:
            bits, count = bits >> np.uint64(step), count + step
    return count


@compiled
def _rows(place, bases, used, by_depth, parent, byte, piece, depth, costs):
    """Rows of all states; failure and output links shallow states first, since a child's failure follows its
    parent's. A base plus any byte stays inside the table."""
    rows = np.zeros((used, COLUMNS), np.int32)
    rows[:, PARENT] = -1
    for node in by_depth:
        rows[place[node], BASE] = bases[node]
        if node > 0:
            rows[place[node], PARENT] = place[parent[node]]
    for node in by_depth[1:]:
        state, above = place[node], place[parent[node]]
        fail = ROOT
        if above != ROOT:
            back = rows[above, FAIL]
            while True:
                target = rows[back, BASE] + byte[node]
                if rows[target, PARENT] == back:
                    fail = target
                    break
                if back == ROOT:
                    break
                back = rows[back, FAIL]
        rows[state, FAIL] = fail
        rows[state, DEPTH] = depth[node]
        rows[state, LINK] = fail if rows[fail, LENGTH] > 0 else rows[fail, LINK]
        rows[state, PIECE] = piece[node]
        if piece[node] >= 0:
            rows[state, LENGTH] = depth[node]
            rows[state, COST] = costs[piece[node]]
    return rows
