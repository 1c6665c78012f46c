"""Three tasks that are the same at any length: copy, reverse and addition. An example is a row of ids.

    copy      START 3 1 4 EQUALS 3 1 4 END
    reverse   START 3 1 4 EQUALS 4 1 3 END
    addition  START 3 1 4 PLUS 2 9 1 EQUALS 5 0 6 0 END           413 + 192 = 605

The length of an example is the number of digits of the text, or of each addend. Digits are drawn evenly, each by
itself: an addend may begin with zeros. Numbers are written from the lowest digit on, so that a carry moves along with
the text; a sum has one digit more than its addends. Ids 0 to 9 are the digits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from train.data import Batch

START, PLUS, EQUALS, END = 10, 11, 12, 13
VOCABULARY = 14
TRAINED_LENGTH = 32
IGNORED = -100
MADE = 64  # examples at a time

Examples = tuple[np.ndarray, np.ndarray]
"""Questions int64 [count, q] up to EQUALS, and their answers int64 [count, a] up to END."""


def _between(first: int, digits: np.ndarray, last: int) -> np.ndarray:
    return np.pad(digits, ((0, 0), (1, 1)), constant_values=((0, 0), (first, last)))


def copy(count: int, length: int, rng: np.random.Generator) -> Examples:
    digits = rng.integers(0, 10, (count, length))
    return _between(START, digits, EQUALS), _with_end(digits)


def reverse(count: int, length: int, rng: np.random.Generator) -> Examples:
    digits = rng.integers(0, 10, (count, length))
    return _between(START, digits, EQUALS), _with_end(digits[:, ::-1])


def addition(count: int, length: int, rng: np.random.Generator) -> Examples:
    one, other = rng.integers(0, 10, (2, count, length))
    total, carry = np.empty((count, length + 1), dtype=np.int64), np.zeros(count, dtype=np.int64)
    for place in range(length):
        carry, total[:, place] = np.divmod(one[:, place] + other[:, place] + carry, 10)
    total[:, length] = carry
    return np.concatenate([_between(START, one, PLUS), other, np.full((count, 1), EQUALS)], axis=1), _with_end(total)


def _with_end(digits: np.ndarray) -> np.ndarray:
    return np.pad(digits, ((0, 0), (0, 1)), constant_values=END)


TASKS: dict[str, Callable[[int, int, np.random.Generator], Examples]] = {
    "copy": copy, "reverse": reverse, "addition": addition}


def tokens(task: str, length: int) -> int:
    """What a model reads of an example of this length: all but END."""
    return 3 * length + 4 if task == "addition" else 2 * length + 2


class PackedExamples:
    """Batches of rows as long as the longest example of the training, filled with examples as documents; one that does
    not fit begins the next row. Only answers are targets.

    Args:
        rows: of a batch.
    """

    def __init__(self, task: str, rows: int, rng: np.random.Generator):
        self.task, self.rows, self.rng = task, rows, rng
        self.width, self.next_length = tokens(task, TRAINED_LENGTH), 1
        self._made: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    def batch(self, first_token: int, longest: int) -> Batch:
        """Examples of length 1 to `longest`, each length as often as any other."""
        shape = self.rows, self.width
        ids, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        doc_start = np.zeros(shape, np.int32)
        for row in range(self.rows):
            begin = 0
            while begin + tokens(self.task, self.next_length) <= self.width:
                text, answer = self._example(self.next_length)
                end = begin + len(text)
                ids[row, begin:end], targets[row, end - len(answer): end] = text, answer
                doc_start[row, begin:end] = begin
                begin, self.next_length = end, int(self.rng.integers(1, longest + 1))
            doc_start[row, begin:] = begin
        predicted = np.count_nonzero(targets != IGNORED, axis=1)
        return Batch(ids, targets, doc_start, first_token, int(predicted.sum()), int(predicted.sum()), predicted)

    def _example(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """What a model reads of an example, and its answer; MADE of a length are made at a time."""
        ready = self._made.setdefault(length, [])
        if not ready:
            questions, answers = TASKS[self.task](MADE, length, self.rng)
            ready += zip(np.concatenate([questions, answers[:, :-1]], axis=1), answers)
        return ready.pop()
