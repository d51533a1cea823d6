"""What a run prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..attacks import ATTACKS
from .output import count_messages
from .program import Figures
from .run import Plan, Result


def lines_of(plan: Plan, result: Result) -> Iterator[str]:
    """The table, line by line; the last says whether it passed."""
    ledger = result.ledger
    yield f"seed {plan.seed}, {plan.seconds:g} s, codec {plan.codec}"
    yield ""
    yield f"{'kind':<32}{'sent':>9}{'verified':>10}"
    for kind, sent in sorted(ledger.sent.items()):
        yield f"{kind:<32}{sent:>9}{ledger.verified[kind]:>10}"
    yield f"{'all':<32}{ledger.sent.total():>9}{ledger.verified.total():>10}"
    yield ""
    yield _row("wrong", ledger.wrong)
    yield _row("failed without cause", ledger.failed)
    yield _row("failed with cause", _counts(ledger.explained))
    yield _row("retried", _counts(ledger.retried))
    yield _row("clients that left on purpose", ledger.left)
    yield _row("attacks cut short", ledger.cut_short)
    left_out = sorted(ATTACKS.keys() - set(plan.attacks))
    yield _row("attacks left out, as they are long", f"{len(left_out)}{': ' * bool(left_out)}{', '.join(left_out)}")
    yield _row("attacks survived", _counts(ledger.survived))
    yield _row("workers killed, rolls, resizes", f"{len(ledger.kills)}, {ledger.rolls}, {ledger.resizes}")
    yield ""
    peaks = result.peaks
    yield _row("peak memory", f"{peaks.memory:.1f} MiB of one process, {peaks.all_memory:.1f} of all")
    yield _row("peak descriptors and threads", f"{peaks.descriptors} and {peaks.threads} of one process")
    for name, figures in (("fresh", result.fresh), ("after the first load", result.first), ("final", result.last)):
        for one in figures:
            yield _row(name, _describe(one))
    yield _row("the driver's own lag", f"{ledger.lateness:.2f} s")
    yield _row("took", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items()))
    yield _row("stopped", f"with exit code {result.exit_code} after {result.stop_seconds:.1f} s")
    yield ""
    for message, count in sorted(count_messages(result.lines).items()):
        yield f"{count:>6} x {message}"
    yield ""
    faults = result.all_faults()
    yield from (f"failed: {fault}" for fault in faults)
    reasons = "1 reason" if len(faults) == 1 else f"{len(faults)} reasons"
    yield f"failed, for {reasons}" if faults else "passed"


def _row(name: str, value: object) -> str:
    return f"{name:<32}{value}"


def _counts(counts: Counter[str]) -> str:
    words = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return f"{counts.total()}" + (f": {words}" if words else "")


def _describe(one: Figures) -> str:
    return (
        f"worker {one.pid}: {one.memory:.1f} MiB, {one.objects} objects, {one.blocks} blocks, "
        f"{len(one.descriptors)} descriptors, {one.tasks} tasks (peak {one.peak_tasks}), {one.threads} threads, "
        f"lag {one.lag:.2f} s"
    )
