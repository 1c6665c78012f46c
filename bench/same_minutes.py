"""The same minutes for each way to train: `python -m bench.time_to_loss --data TRAIN --val-data VALIDATION`.

One model, one vocabulary, the same tokens in the same order, judged by bits per byte of the whole validation text:

- peer: the model written in PyTorch (bench.peers.decoder), PyTorch's fused AdamW, compiled if --compile-peer.
- adamw: ours with the same AdamW, weights from the same start.
- muon: ours with Muon.
- muon, fewer steps than peer, than adamw: STEP_SHARE of what those took. The first must end at or below the peer's
  loss; the second says whether the lead lasts when AdamW takes as many steps as ours does in the minutes.
- long rows: muon with rows of LONG tokens.
- curriculum: the same with rows and steps that grow to that, for TIME_SHARE of the minutes. It must end at or below the
  loss of long rows.

The learning rate follows the share of the minutes that is spent, so every run ends its schedule. Seconds count batches
and steps; they leave out start-up, evaluation and one step on a model that is thrown away. Every run is a process of
its own; they take turns of about TURN_SECONDS, so that a slow minute of the machine hits all of them. Only the runs by
steps come after the others. Progress goes to stderr, one JSON line to stdout.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict

from bench.turns import Result, Side, run_in_turns

STEP_SHARE, TIME_SHARE = 0.7, 0.8
FEWER = "muon, fewer steps than {}"
LONG = 1024  # tokens
MUON = ("optim.optimizer=muon",)
LONG_ROWS = (*MUON, f"model.max_seq_len={LONG}", f"data.seq_len={LONG}")
GROWING = (*LONG_ROWS, "data.lengths=128:10%,256:70%,512:10%,1024:10%", "data.batch_ramp=2048:60%,4096:40%")


def contest(arguments: argparse.Namespace) -> dict:
    """All runs, and what they say."""
    minutes = arguments.minutes
    runs: list[dict[str, Result]] = []
    sides = {"peer": Side(minutes=minutes, peer=True), "adamw": Side(("optim.optimizer=adamw",), minutes),
             "muon": Side(MUON, minutes), "long rows": Side(LONG_ROWS, minutes),
             "curriculum": Side(GROWING, TIME_SHARE * minutes)}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        found = run_in_turns(arguments, seed, sides)
        fewer = {FEWER.format(name): Side(MUON, steps=round(STEP_SHARE * found[name].steps))
                 for name in ("peer", "adamw")}
        runs.append(found | run_in_turns(arguments, seed, fewer))

    def lead(one: str, other: str) -> float:
        return round(statistics.median(run[other].bits_per_byte - run[one].bits_per_byte for run in runs), 4)

    return {"minutes": arguments.minutes, "threads": arguments.threads, "compiled_peer": arguments.compile_peer,
            "bits_under_peer": lead("muon", "peer"), "step_share": STEP_SHARE,
            "bits_under_peer_in_fewer_steps": lead(FEWER.format("peer"), "peer"),
            "bits_under_adamw_in_fewer_steps": lead(FEWER.format("adamw"), "adamw"), "time_share": TIME_SHARE,
            "bits_under_long_rows_in_less_time": lead("curriculum", "long rows"),
            "runs": [{name: asdict(result) for name, result in run.items()} for run in runs]}
