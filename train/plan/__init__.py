"""What a run will take: parameters, FLOPs, memory and time. `python -m train.plan` prints it."""

from train.plan.fitting import check_fits, largest_micro_tokens
from train.plan.machine import available_memory
from train.plan.memory import memory_by_part

__all__ = ["available_memory", "check_fits", "largest_micro_tokens", "memory_by_part"]
