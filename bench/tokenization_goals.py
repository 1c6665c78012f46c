"""The arithmetic of `bench.tokenization`: medians and ratios, the projection to a large text, goals reached or not."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple

PROJECTED_BYTES = 60e9
PROJECTED_MEMORY = 4 << 30  # what --memory is by default
MIX = "mix"


class Goal(NamedTuple):
    """`measured` must be at least (`sense` ">=") or at most ("<=") `target`; None when it was not measured."""

    name: str
    sense: str
    target: float
    measured: float | None

    @property
    def reached(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.target if self.sense == ">=" else self.measured <= self.target


def speeds_table(entries: list[dict]) -> list[dict]:
    """Median and best MB/s of each contestant and kind, and how many times as fast ours is, by the rounds' median.

    `passes` of a round count as its median; a ratio is that of two contestants in the same round.
    """
    rows = []
    for kind, name in dict.fromkeys((entry["kind"], entry["contestant"]) for entry in entries):
        mine = {entry["round"]: entry for entry in entries if (entry["kind"], entry["contestant"]) == (kind, name)}
        ours = {entry["round"]: entry for entry in entries if (entry["kind"], entry["contestant"]) == (kind, "ours")}
        row: dict = {"kind": kind, "contestant": name}
        for phase in ("cold", "warm", "decode"):
            seconds = {turn: _seconds(entry, phase) for turn, entry in mine.items()}
            megabytes = next(iter(mine.values()))["bytes"] / 1e6
            ratios = [value / _seconds(ours[turn], phase) for turn, value in seconds.items() if turn in ours]
            row[phase] = {"median": megabytes / statistics.median(seconds.values()),
                          "best": megabytes / min(seconds.values()),
                          "ratio": statistics.median(ratios) if ratios else None}
        row["load_ms"] = statistics.median(entry["load"] for entry in mine.values()) * 1e3
        row["wrong"] = max(entry["wrong"] for entry in mine.values())
        rows.append(row)
    return rows


def _seconds(entry: dict, phase: str) -> float:
    return entry["cold"] if phase == "cold" else statistics.median(entry[phase])


def same_ids(entries: list[dict], name: str, reference: str) -> float | None:
    """The share of documents for which two contestants gave the same ids."""
    pairs = []
    for kind in {entry["kind"] for entry in entries}:
        of = {entry["contestant"]: entry["checks"] for entry in entries if entry["kind"] == kind}
        if name in of and reference in of:
            pairs += zip(of[name], of[reference])
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else None


def scaling(entries: list[dict]) -> dict[str, float]:
    """How many times as much two processes do as one, by kind: the median of the turns' ratios."""
    ratios: dict[str, list[float]] = {}
    for one, two in zip(entries[::2], entries[1::2]):
        ratios.setdefault(one["kind"], []).append(two["mb_per_second"] / one["mb_per_second"])
    return {kind: statistics.median(found) for kind, found in ratios.items()}


def compression_table(entries: list[dict], held_out: Iterable[str]) -> list[dict]:
    """Bytes per token by text, and of all held-out text together (`mix`); ratios are ours over the contestant's, on the
    same training text."""
    held_out, rows = list(held_out), []
    for entry in entries:
        per_token = {name: entry["bytes"][name] / max(1, tokens) for name, tokens in entry["tokens"].items()}
        per_token[MIX] = (sum(entry["bytes"][name] for name in held_out)
                          / max(1, sum(entry["tokens"][name] for name in held_out)))
        rows.append({**entry, "bytes_per_token": per_token})
    for row in rows:
        ours = next((other for other in rows if other["contestant"] == "ours" and other["text"] == row["text"]), None)
        row["ratio"] = {name: ours["bytes_per_token"][name] / value for name, value in row["bytes_per_token"].items()
                        } if ours else {}
    return rows


def projection(phases: dict[str, float], text_bytes: int, share: float, target_bytes: float = PROJECTED_BYTES) -> dict:
    """Core-hours for `target_bytes` of text from the CPU seconds of a measured training's phases.

    Everything grows with the text, as measured; what comes before the rounds looks at `share` of it.

    Args:
        phases: CPU seconds by name; those of rounds are named "round-00" and so on, that of reading "reading".
    """
    per_mb = {"reading": 0.0, "candidates": 0.0, "rounds": 0.0}
    for name, seconds in phases.items():
        part = "rounds" if name.startswith("round") else "reading" if name == "reading" else "candidates"
        per_mb[part] += seconds / (text_bytes / 1e6)
    megabytes = target_bytes / 1e6
    hours = {part: seconds * megabytes * (share if part == "candidates" else 1.0) / 3600
             for part, seconds in per_mb.items()}
    looked_at = {part: f" x {share:.3f} of the text" if part == "candidates" else "" for part in per_mb}
    lines = [f"{part}: {per_mb[part]:.4f} CPU s/MB x {megabytes:,.0f} MB{looked_at[part]} / 3600 = {hours[part]:.2f} "
             "core-hours" for part in per_mb]
    return {"per_mb": per_mb, "hours": hours, "core_hours": sum(hours.values()), "share": share, "lines": lines}


def projected_memory(points: list[tuple[int, float]], limit_mb: float, looked_at_bytes: float) -> dict:
    """Peak memory in MiB for a text whose candidates are looked for in `looked_at_bytes`: a straight line through the
    measured (bytes, MiB), never less than the largest of them, and no more than the trainer allows itself."""
    points = sorted(points)
    (small, low), (large, high) = points[0], points[-1]
    slope = (high - low) / (large - small) if large > small else high / large
    line = max(high, high + slope * (looked_at_bytes - large))
    return {"points": points, "slope_mb_per_gb": slope * 1e9, "straight_line_mb": line, "limit_mb": limit_mb,
            "mb": min(line, max(limit_mb, high))}


def goals(results: dict) -> list[Goal]:
    """What was measured, against what it should be."""
    found: list[Goal] = []
    speeds = results.get("speeds", [])

    def speed_ratio(rival: str, phases: tuple[str, ...], kinds: tuple[str, ...] | None = None) -> float | None:
        ratios = [row[phase]["ratio"] for row in speeds for phase in phases
                  if row["contestant"] == rival and (kinds is None or row["kind"] in kinds)]
        ratios = [ratio for ratio in ratios if ratio is not None]
        return min(ratios) if ratios else None

    for rival, target in (("bytepiece", 20), ("tokenizers", 10), ("tiktoken", 2.3), ("sentencepiece", 2)):
        for phase in ("cold", "warm"):
            measured = speed_ratio(rival, (phase,))
            found.append(Goal(f"encoding, {phase}, slowest kind: x {rival}", ">=", target, measured))
    for kind, name, target in (("zh", "Chinese", 2.5), ("en", "English", 0.5)):
        found.append(Goal(f"encoding, cold {name}: x gigatoken", ">=", target,
                          speed_ratio("gigatoken", ("cold",), (kind,))))
    for rival, target in (("tokenizers", 5), ("tiktoken", 1.5)):
        found.append(Goal(f"decoding, slowest kind: x {rival}", ">=", target, speed_ratio(rival, ("decode",))))
    two = results.get("two_processes")
    found.append(Goal("two processes: x one", ">=", 1.8, min(two.values()) if two else None))
    found += _training_goals(results.get("training", {}))
    hours = results.get("projection", {}).get("core_hours")
    found.append(Goal("60 GB: core-hours", "<=", 10, hours))
    found += _compression_goals(results.get("compression", []), results.get("out_of_domain", []))
    cost, lossless = results.get("hard"), results.get("lossless", {}).get("ours")
    found.append(Goal("hard texts: worst cost per byte, x English", "<=", 3, cost and cost["worst"]))
    found.append(Goal("texts that came back changed", "<=", 0,
                      lossless and lossless["changed"] + len((cost or {"wrong": []})["wrong"])))
    models = {row["contestant"]: row["bits_per_byte"] for row in results.get("models", [])}
    ratio = models["ours"] / models["tokenizers"] if {"ours", "tokenizers"} <= set(models) else None
    found.append(Goal("a small model's bits per byte: x that on tokenizers' BPE", "<=", 1, ratio))
    return found


def _training_goals(training: dict[str, dict]) -> list[Goal]:
    def cost(name: str, what: str) -> float | None:
        return training[name][what] if name in training else None

    def ratio(upper: float | None, lower: float | None) -> float | None:
        return None if upper is None or lower is None else upper / lower

    # Wall time depends on what else the machine did: two of different runs say nothing.
    one_run = not any(training.get(name, {}).get("kept") for name in ("ours", "tokenizers"))
    wall = ratio(cost("ours", "wall"), cost("tokenizers", "wall")) if one_run else None
    ours = training.get("ours")
    per_mb = ours["cpu"] / (ours["bytes"] / 1e6) if ours else None
    beside_slow = "ours/small" if "ours/small" in training else "ours"
    return [
        Goal("training: CPU seconds per MB", "<=", 1.5, per_mb),
        Goal("training: peak GB", "<=", 2, ours and ours["peak_mb"] * 2**20 / 1e9),
        Goal("training: bytepiece's CPU, x ours", ">=", 10, ratio(cost("bytepiece", "cpu"), cost(beside_slow, "cpu"))),
        Goal("training: wall time, x tokenizers' BPE", "<=", 0.5, wall),
    ]


def _compression_goals(rows: list[dict], out_of_domain: list[str]) -> list[Goal]:
    ratios = {row["contestant"]: row["ratio"] for row in rows if row["contestant"] != "ours"}
    bpe, bytepiece = ratios.get("tokenizers", {}), ratios.get("bytepiece", {})
    out = [bpe[name] for name in out_of_domain if name in bpe]
    return [
        Goal("bytes per token, mix: x tokenizers' BPE", ">=", 1.08, bpe.get(MIX)),
        Goal("bytes per token, out of domain: x tokenizers' BPE", ">=", 1.0, min(out) if out else None),
        Goal("bytes per token, worst text: x bytepiece", ">=", 1.0, min(bytepiece.values()) if bytepiece else None),
    ]
