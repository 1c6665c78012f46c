"""The length curriculum and the batch ramp: how long rows are, and how many tokens a step has, where in a run."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from train.errors import UserError

if TYPE_CHECKING:
    from train.sections import DataConfig

SHARE = re.compile(r"\s*(\d+)\s*:\s*(\d+\.?\d*|\.\d+)\s*%\s*", re.ASCII)
Shares = list[tuple[int, float]]


class Stage(NamedTuple):
    """Tokens of a row, and of an optimizer step."""

    seq_len: int
    batch_tokens: int

    @property
    def rows(self) -> int:
        return self.batch_tokens // self.seq_len


class Curriculum:
    """The stages of a run, by its token cursor: a step belongs to the stage of its first token.

    Args:
        data: lengths and sizes, and their shares of the run's tokens.
        total_tokens: of the run; None when not known yet: then all of it is the first stage.
    """

    def __init__(self, data: DataConfig, total_tokens: int | None) -> None:
        self.total_tokens = total_tokens
        self._lengths = parse_shares(data.lengths, "data.lengths") or [(data.seq_len, 1.0)]
        self._sizes = parse_shares(data.batch_ramp, "data.batch_ramp") or [(data.batch_tokens, 1.0)]
        self._length_borders = _borders(self._lengths, total_tokens)
        self._size_borders = _borders(self._sizes, total_tokens)

    @classmethod
    def for_steps(cls, data: DataConfig, steps: int) -> Curriculum:
        """The curriculum of a run of `steps` steps. With sizes that rise and fall there may be no number of tokens that
        takes exactly as many; then `total_steps` is a little smaller, and the last stage goes on."""
        low, high = 0, steps * max(size for size, _ in cls(data, None)._sizes) + 1
        while high - low > 1:
            middle = (low + high) // 2
            fits = cls(data, middle).steps_from(0) <= steps
            low, high = (middle, high) if fits else (low, middle)
        return cls(data, low)

    def at(self, cursor: int) -> Stage:
        """The stage of the step whose first token is at `cursor`; after the end, the last one."""
        return Stage(self._lengths[bisect_right(self._length_borders, cursor)][0],
                     self._sizes[bisect_right(self._size_borders, cursor)][0])

    def stages(self, cursor: int = 0) -> list[tuple[Stage, int]]:
        """The stages from a cursor on and how many steps each has; none when the run's tokens are not known."""
        found = []
        for border in sorted({*self._length_borders, *self._size_borders, self.total_tokens or 0}):
            stage = self.at(cursor)
            steps = -(-(border - cursor) // stage.batch_tokens)
            if steps > 0:
                found.append((stage, steps))
                cursor += steps * stage.batch_tokens
        return found

    def steps_from(self, cursor: int) -> int:
        """Steps from a cursor on until all tokens are read."""
        return sum(steps for _, steps in self.stages(cursor))

    def total_steps(self) -> int | None:
        """Steps of the whole run; None when its tokens are not known."""
        return None if self.total_tokens is None else self.steps_from(0)


def parse_shares(text: str, name: str) -> Shares:
    """"64:10%,128:90%" as [(64, 0.1), (128, 0.9)], "" as [].

    Raises:
        UserError: `text`, the setting `name`, is something else.
    """
    found = [SHARE.fullmatch(item) for item in text.split(",")] if text.strip() else []
    shares = [(int(match[1]), float(match[2])) for match in found if match]
    if len(shares) < len(found) or not all(value > 0 and share > 0 for value, share in shares):
        raise UserError(f"{name} must be numbers with their shares of the run's tokens, such as 64:10%,128:90%: "
                        f"got {text!r}")
    percent = sum(share for _, share in shares)
    if shares and abs(percent - 100) > 1e-6:
        raise UserError(f"the shares of {name} must add up to 100 %: got {percent:g} % in {text!r}")
    return [(value, share / 100) for value, share in shares]


def _borders(shares: Shares, total: int | None) -> list[int]:
    """Cursors at which the second and later ones begin."""
    return [] if total is None else [round(total * before) for before in accumulate(share for _, share in shares[:-1])]
