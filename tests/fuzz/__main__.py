"""Fuzzes for a while, one target after the other: `python -m tests.fuzz --help`.

Coverage-guided targets run in processes of their own and need atheris; the others draw from hypothesis, with another
seed each time. A finding is shown in a form that can be kept: as a file of the corpus, or as the example's own code.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from . import config, proxies, websocket
from .corpus import HTTP11, dictionary, seeds

DRAWN_AT_A_TIME = 100
"""Examples between two looks at the clock. Hypothesis keeps all of them, which makes later ones slower."""

LONGEST = 1024
"""Bytes of an input: more than the head, the fields and the trailers of its server may be."""

HANGS = 20
"""Seconds after which an input that is not done is a finding. Most take a few milliseconds."""

PATIENCE = 60.0
"""Seconds beyond its time that a process may take for its start and its end."""

REPOSITORY = Path(__file__).parents[2]


class FoundSomething(Exception):
    """A target has failed, and has said why."""


@dataclass(frozen=True)
class Drawn:
    """A target that draws from hypothesis."""

    scenarios: Callable[[], st.SearchStrategy[Any]]
    check: Callable[[Any], None]

    def run(self, name: str, seconds: float, first_seed: int) -> None:
        deadline = time.monotonic() + seconds
        count = 0

        def check(scenario: Any) -> None:
            nonlocal count
            count += 1
            self.check(scenario)

        number = first_seed
        while time.monotonic() < deadline:
            gc.collect()
            gc.freeze()  # each server ends with a collection, which need not look at all that was there before
            test = given(self.scenarios())(check)
            limits = settings(
                max_examples=DRAWN_AT_A_TIME, deadline=None, database=None, suppress_health_check=list(HealthCheck)
            )
            try:
                seed(number)(limits(test))()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
                traceback.print_exception(error)  # with the smallest example among its notes
                raise FoundSomething(f"{name} failed with seed {number}, after {count} examples") from None
            number += 1
        print(f"{name}: {count} examples, seeds {first_seed} to {number - 1}")


@dataclass(frozen=True)
class Guided:
    """A target that atheris guides by the coverage of the code; it gets bytes."""

    corpus: Path

    def run(self, name: str, seconds: float, first_seed: int) -> None:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            for part in ("found", "seeds", "failed"):
                (folder / part).mkdir()
            for number, data in enumerate(seeds()):
                (folder / "seeds" / str(number)).write_bytes(data)
            (folder / "dictionary").write_text(dictionary())
            command = [
                *(sys.executable, "-m", "tests.fuzz.coverage_guided", name),
                *(
                    f"-max_total_time={seconds:.0f}",
                    f"-max_len={LONGEST}",
                    f"-seed={first_seed}",
                    "-print_final_stats=1",
                ),
                *(f"-dict={folder / 'dictionary'}", f"-artifact_prefix={folder / 'failed'}{os.sep}"),
                *(str(folder / "found"), str(folder / "seeds"), str(self.corpus)),
            ]
            done = subprocess.run(
                command,
                check=False,
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds + PATIENCE,
            )
            lines = done.stdout.decode(errors="replace").splitlines()
            last = [line for line in lines if " cov: " in line][-1:]
            print(f"{name}: {' '.join(last) or 'no coverage'}")
            if done.returncode:
                print("\n".join(line for line in lines if " cov: " not in line and not line.startswith("INFO: ")))
                for path in sorted((folder / "failed").iterdir()):
                    print(f"{path.name}: {path.read_bytes()!r}")
                    print(f"To keep it: (HTTP11 / {path.name!r}).write_bytes(...), with HTTP11 of tests.fuzz.corpus")
                raise FoundSomething(f"{name} ended with {done.returncode}")


TARGETS: dict[str, Drawn | Guided] = {
    "codecs": Guided(HTTP11),
    "http11": Guided(HTTP11),
    "websocket": Drawn(websocket.scenarios, websocket.check),
    "config": Drawn(config.scenarios, config.check),
    "proxies": Drawn(proxies.scenarios, proxies.check),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="for all targets together (default: %(default)g)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one; may be repeated")
    parser.add_argument("--without-atheris", action="store_true", help="leave out what needs it")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    asked = parser.parse_args()
    logging.disable()  # what applications raise on purpose, and what is wrong with files
    chosen = {name: TARGETS[name] for name in asked.target or TARGETS}
    if asked.without_atheris:
        chosen = {name: target for name, target in chosen.items() if isinstance(target, Drawn)}
    status = 0
    for name, target in chosen.items():
        try:
            target.run(name, asked.seconds / len(chosen), asked.seed)
        except FoundSomething as finding:
            print(f"FOUND: {finding}", file=sys.stderr)
            status = 1
    print("failed" if status else "passed")
    return status


if __name__ == "__main__":
    sys.exit(main())
