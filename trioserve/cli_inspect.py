"""The sub-command ``trioserve inspect``: what a running server does."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from .outline import format_age, outline, printable
from .process.inspector_client import NoAnswer, ask, ask_whole, find_servers
from .process.inspector_folder import SUPPORTED, Found, find_sockets, folders, has_died, is_alive
from .process.log_setup import wants_colors
from .screen import Screen
from .snapshot import Request
from .types import PlainValues

EXIT_NO_ANSWER = 1

_LIST_PATIENCE = 1.0

_HELP = """Show what a running server does: its workers, connections, requests and tasks, each with its age, and what
it waits for.

PID is that of a server, a supervisor or one of its workers; without it the only server of this user is shown. A server
started with --no-inspector, or by another user, cannot be asked.
"""

_EPILOG = "Exit codes: 0 shown, 1 there is no such server or it does not answer, 2 wrong usage, or name one of several."


class _Failure(click.ClickException):
    exit_code = EXIT_NO_ANSWER


def _fail(text: str) -> click.ClickException:
    return _Failure(printable(text))


def choose(pid: int | None) -> Found:
    """The process that is meant. Raises click.ClickException, or UsageError if one of several has to be named."""
    if not SUPPORTED:
        raise _fail("this needs unix sockets, which Python does not have on this system")
    found = find_sockets()
    if pid is not None:
        for one in found:
            if one.pid == pid and not has_died(one.path):
                return one
        raise _fail(_why_not(pid))
    servers = find_servers(found)
    if not servers:
        where = " or ".join(map(str, folders())) or "any folder"
        raise _fail(f"no server of this user can be inspected: there is no socket of one in {where}")
    if len(servers) > 1:
        lines = [f"  {one.pid}  {_introduce(one)}" for one in sorted(servers, key=lambda one: one.pid)]
        raise click.UsageError("several servers run; name one by its PID:\n" + "\n".join(lines))
    return servers[0]


def _introduce(one: Found) -> str:
    try:
        values = ask(one, None, patience=_LIST_PATIENCE)
    except NoAnswer as error:
        return f"{one.kind}: {printable(str(error))}"
    words = f"{values['kind']} of {values['app']}, {values['phase']}, {format_age(values['age'])}"
    return printable(f"{words}, {' '.join(values['urls'])}")


def _why_not(pid: int) -> str:
    if not is_alive(pid):
        return f"there is no process {pid}"
    with contextlib.suppress(OSError):
        owner = os.stat(f"/proc/{pid}").st_uid
        if owner != os.geteuid():
            return f"process {pid} belongs to another user, number {owner}: only that user can inspect it"
    return (
        f"process {pid} cannot be inspected: it is no trioserve server, or one with --no-inspector, or one whose "
        "XDG_RUNTIME_DIR or TMPDIR is another"
    )


def _snapshots(found: Found, request: Request, seconds: float | None) -> Iterator[PlainValues]:
    """What it does, again and again until it ends if there are ``seconds`` in between. Raises click.ClickException."""
    while True:
        try:
            yield ask_whole(found, request)
        except NoAnswer as error:
            if seconds is not None and has_ended(found):
                return
            if seconds is None:
                raise _fail(f"process {found.pid} {error}") from None
            # It may be stopped for a while, or blocked by what holds the interpreter.
            yield {"schema": 1, "kind": found.kind, "pid": found.pid, "error": str(error)}
        if seconds is None:
            return
        time.sleep(seconds)


def has_ended(found: Found) -> bool:
    return not Path(found.path).exists() or has_died(found.path)


def _show(found: Found, request: Request, seconds: float | None, *, as_json: bool, colors: bool | None) -> None:
    output = sys.stdout
    screen = Screen(output, is_terminal=output.isatty(), colors=wants_colors(colors, output))
    with contextlib.ExitStack() as stack:
        if seconds is not None and not as_json:
            stack.enter_context(screen.taking_over())
        # Ctrl-C is how a watch ends.
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        for snapshot in _snapshots(found, request, seconds):
            if as_json:
                screen.write(json.dumps(snapshot) + "\n")
            else:
                screen.show(outline(snapshot))
        if seconds is not None:
            stack.pop_all().close()
            click.echo(f"process {found.pid} has ended", err=True)


@click.command(
    "inspect",
    help=_HELP,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.argument("pid", type=click.IntRange(min=1), required=False, metavar="[PID]")
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1),
    is_flag=False,
    flag_value=1.0,
    metavar="[SECONDS]",
    help="Show it anew this often, each second if not said, until Ctrl-C or the server's end.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object; with --watch one a line.")
@click.option("--stacks", is_flag=True, help="Also each task's whole stack, and those of all threads.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=50,
    metavar="N",
    help="Connections of a process that are shown, the busiest first; the others are counted.  [default: 50]",
)
@click.option("--use-colors/--no-use-colors", "colors", default=None, help="Default: on a terminal.")
def inspect_command(
    pid: int | None, watch: float | None, as_json: bool, stacks: bool, limit: int, colors: bool | None
) -> None:
    found = choose(pid)
    _show(found, Request(limit, stacks), watch, as_json=as_json, colors=colors)


def run_inspect(arguments: Sequence[str], program: str) -> None:
    """Do what the sub-command with these arguments asks; ends the process."""
    inspect_command.main(list(arguments), prog_name=f"{program} inspect")
