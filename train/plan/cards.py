"""Graphics cards by name: peak speed and memory as their makers publish them."""

from __future__ import annotations

from typing import NamedTuple

from train.errors import UserError

MFU = 0.4
"""Share of the peak that a run is taken to reach where none is named: model FLOPs utilisation, as PaLM defines it
(arXiv 2204.02311, appendix B)."""


class Card(NamedTuple):
    """`half`, `tf32`, `single`: FLOP/s of dense products of bfloat16 and of TF32 matrices with float32 sums, and of
    float32 arithmetic without tensor cores; `memory` in bytes."""

    name: str
    half: float
    tf32: float
    single: float
    memory: int

    def peak(self, precision: str) -> float:
        """FLOP/s under a policy of engine.precision."""
        return {"float32": self.single, "tf32": self.tf32}.get(precision, self.half)


GB = 10**9
CARDS = (
    Card("B200", 2250e12, 1125e12, 75e12, 180 * GB),
    Card("H200", 989e12, 495e12, 67e12, 141 * GB),
    Card("H100 PCIe", 756e12, 378e12, 51e12, 80 * GB),
    Card("H100", 989e12, 495e12, 67e12, 80 * GB),
    Card("A100", 312e12, 156e12, 19.5e12, 80 * GB),
    Card("A100 40GB", 312e12, 156e12, 19.5e12, 40 * GB),
    Card("L40S", 362e12, 183e12, 91.6e12, 48 * GB),
    Card("RTX 5090", 209.5e12, 104.8e12, 104.8e12, 32 * GB),
    Card("RTX 4090", 165.2e12, 82.6e12, 82.6e12, 24 * GB),
    Card("RTX 3090", 71e12, 35.6e12, 35.6e12, 24 * GB),
)


def card(name: str) -> Card:
    """The card called `name`, spaces and capitals aside; UserError for one that is not in the table."""
    def plain(text: str) -> str:
        return "".join(text.lower().replace("nvidia", "").replace("geforce", "").split()).removeprefix("rtx")

    for one in CARDS:
        if plain(one.name) == plain(name):
            return one
    raise UserError(f"--card must be one of {', '.join(one.name for one in CARDS)}: got {name!r}")
