"""A plan as text for a person."""

from __future__ import annotations

from train.progress import clock

MB, GB = 1e6, 1e9


def text(plan: dict) -> str:
    """The tables that `python -m train.plan` prints."""
    return "\n\n".join(part for part in (_size(plan), _memory(plan), _time(plan), _reading(plan)) if part)


def _lines(title: str, rows: list[tuple[str, str, str]]) -> str:
    return "\n".join([title] + [f"  {name:28} {value:>16}  {more}".rstrip() for name, value, more in rows])


def _size(plan: dict) -> str:
    counts, active, flops = plan["parameters"], plan["active_parameters"], plan["flops_per_token"]
    total, work = sum(counts.values()), sum(flops.values())

    def for_a_token(all_of_them: int, some: int) -> str:
        return f"  {some:,} for a token" if some != all_of_them else ""

    head = _lines(f"parameters ({plan['preset']})",
                  [(name, f"{count:,}", f"{count / total:5.1%}{for_a_token(count, active[name])}")
                   for name, count in counts.items()]
                  + [("all", f"{total:,}", for_a_token(total, sum(active.values())))])
    return head + "\n\n" + _lines("FLOPs per token, forward and backward",
                                  [(name, f"{count / 1e6:,.2f} M", f"{count / work:5.1%}")
                                   for name, count in flops.items()] + [("all", f"{work / 1e6:,.2f} M", "")])


def _memory(plan: dict) -> str:
    memory, micro = plan["memory"], plan["micro_tokens"]
    total = sum(memory.values())
    where = f"a {plan['device']}" if "peak_flops" in plan else "this machine"
    rows = [(name, f"{size / MB:,.1f} MB", f"{size / total:5.1%}") for name, size in memory.items()]
    rows.append(("all", f"{total / MB:,.1f} MB", f"of {plan['memory_available'] / GB:,.2f} GB"))
    largest = plan["largest_micro_tokens"]
    fits = "not even one row fits" if not largest else f"largest that fits: {largest:,}"
    rows.append(("micro-batch", f"{micro:,} tokens", fits + (", the whole step" * (largest == plan["step_tokens"]))))
    verdict = "" if plan["fits"] else "\n  this does not fit"
    return _lines(f"memory at its peak on {where}, {plan['precision']}", rows) + verdict


def _time(plan: dict) -> str:
    time = plan.get("time")
    if not time:
        return ""
    if "peak_flops" in plan:
        title = (f"time on a {plan['device']}: {plan['peak_flops'] / 1e12:,.0f} TFLOP/s of published dense peak in "
                 f"{plan['precision']}, of which {plan['mfu']:.0%} is taken to be reached")
    elif plan["device"] == "cpu":
        title = f"time on this machine: {plan['threads']} threads, from two short steps"
    else:
        title = f"time on this machine: {plan['device']}, from two steps"
    rows = [(f"step of {stage['batch_tokens']:,} in rows of {stage['seq_len']}", _seconds(stage["step_seconds"]),
             f"{stage['tokens_per_second']:,.0f} tokens/s, {stage['flops_per_second'] / 1e9:,.1f} GFLOP/s, "
             f"{stage['steps']:,} steps") for stage in time["stages"]]
    rows += [("computing", clock(time["computing"]), f"{time['steps']:,} steps, {time['tokens']:,} tokens"),
             ("evaluating, about", clock(time["evaluating"]), ""), ("sampling, about", clock(time["sampling"]), ""),
             ("the run in all", clock(time["whole"]), "")]
    return _lines(title, rows)


def _reading(plan: dict) -> str:
    reading, time = plan["reading"], plan.get("time")
    told = "" if reading["vocabulary"] else "; the vocabulary is trained before, and cuts text at another speed"
    rows = [("tokenising, about", clock(reading["tokenising"]),
             f"{reading['file_bytes'] / MB:,.1f} MB of files at {reading['rate'] / MB:,.1f} MB/s on one process; "
             f"once, then cached{told}")]
    if time:
        rows.append(("cutting batches", clock(time["reading_batches"]),
                     f"{_seconds(reading['batch'])} a step, in a thread beside the computing"))
    return _lines("reading, apart from computing", rows)


def _seconds(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1000 * seconds:,.1f} ms"
