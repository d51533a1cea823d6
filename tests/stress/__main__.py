"""``python -m tests.stress`` runs it, prints what came of it, and ends with 0 if it passed and 1 if not."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

import trio

from .program import ACCESS
from .report import lines_of
from .run import Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long there is load (default: 300)")
    parser.add_argument("--seed", type=int, help="what decides all that is left to chance (default: another each time)")
    parser.add_argument("--codec", choices=["auto", "h11", "httptools"], default="auto", help="--http of the server")
    parser.add_argument("--log", type=Path, help="an existing folder in which to leave the server's log")
    asked = parser.parse_args()
    plan = Plan(asked.seconds, random.randrange(10**6) if asked.seed is None else asked.seed, asked.codec)
    print(f"stress: seed {plan.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        result = trio.run(run, plan, Path(folder))
        if asked.log is not None:
            shutil.copy(Path(folder) / ACCESS, asked.log)
    if asked.log is not None:
        (asked.log / "errors.log").write_text("".join(f"{line}\n" for line in result.lines))
    *table, verdict = lines_of(plan, result)
    print("\n".join(table))
    print(verdict, flush=True)
    return 0 if verdict == "passed" else 1


if __name__ == "__main__":
    sys.exit(main())
