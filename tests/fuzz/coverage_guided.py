"""Runs one target with atheris: `python -m tests.fuzz.coverage_guided codecs -max_total_time=60 FOLDER`.

What follows the target's name is libFuzzer's: options, a folder that is read and gets what is found, folders that are
read. This is the one module that needs atheris. It ends the process: with an error and a file ``crash-*`` of the input
if there is a finding.
"""

from __future__ import annotations

import gc
import logging
import shlex
import sys

import atheris

INSTRUMENTED = ["trioserve.wire", "h11"]

with atheris.instrument_imports(include=INSTRUMENTED):
    import trioserve.wire.codec_httptools  # noqa: F401 - which is imported when it is first needed

    from . import http11

TARGETS = {"codecs": http11.check_codecs, "http11": http11.check_server}


def main() -> None:
    name, *options = sys.argv[1:]
    itself = f"{shlex.quote(sys.executable)} -m tests.fuzz.coverage_guided {name}"  # which -merge runs in a shell
    logging.disable()  # what the application raises on purpose
    gc.collect()
    gc.freeze()  # each server ends with a collection, which need not look at all that is imported
    atheris.Setup([itself, *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
