"""Whether a run fits into memory, before it starts; by formulas alone, in milliseconds."""

from __future__ import annotations

from train.config import Config
from train.errors import UserError
from train.plan.activations import known
from train.plan.machine import available_memory
from train.plan.memory import largest_batch, memory_by_part

GB = 1e9


def largest_micro_tokens(config: Config, available: int, device: str) -> int:
    """Tokens of the largest micro-batch of whole rows with which a run takes at most `available` bytes; 0: none."""
    length, low = config.data.seq_len, 0
    high = max(1, largest_batch(config) // length)
    while low < high:
        rows = (low + high + 1) // 2
        if sum(memory_by_part(config, rows * length, device).values()) <= available:
            low = rows
        else:
            high = rows - 1
    return low * length


def check_fits(config: Config) -> None:
    """UserError when a run would need more memory than there is, with the largest micro-batch that fits.

    Args:
        config: with device, threads and micro-batch decided. Nothing is known of parts of models that are not in
            train/plan/activations.py: they pass.
    """
    if not known(config.model):
        return
    device, data = config.run.device, config.data
    needed = sum(memory_by_part(config, data.micro_tokens, device).values())
    available = available_memory(device)
    if needed <= available:
        return
    largest = largest_micro_tokens(config, available, device)
    rule = (f"a run must fit into the memory that is free, {available / GB:.2f} GB: got about {needed / GB:.2f} GB "
            f"with micro-batches of {max(data.micro_tokens, data.seq_len):,} tokens")
    if largest:
        raise UserError(f"{rule}; the largest that fits is --set data.micro_tokens={largest}")
    raise UserError(f"{rule}; not even one row of {data.seq_len} tokens at a time fits: take a smaller model or "
                    f"vocabulary, a shorter --seq-len, or --set checkpoint.asynchronous=false")
