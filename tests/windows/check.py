"""Runs trioserve in a Windows Python under wine, and looks at it from Linux: `python -m tests.windows.check --help`.

There are no consoles: a Ctrl-C is a SIGINT, of which wine makes the event that a console would send; for a Ctrl-Break
the server raises the signal itself.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import signal
import ssl
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from .wine import PATIENCE, Failure, WindowsServer, Wine, serving, wait_until

TLS = ("--ssl-certfile", "chain.pem", "--ssl-keyfile", "key.pem")
LOST = (http.client.HTTPException, OSError)
# The first two are what servers are known for whose workers inherit a socket; the others should not be there either.
UNWANTED = ("WinError 87", "WinError 10022", "WinError", "Traceback")


@dataclass
class Report:
    """What was checked, printed as it comes."""

    failures: int = 0
    began: float = field(default_factory=time.monotonic)

    def passed(self, what: str, figures: str) -> None:
        self._print("ok", what, figures)

    def failed(self, what: str, reason: object) -> None:
        self.failures += 1
        self._print("FAILED", what, str(reason))

    def _print(self, outcome: str, what: str, figures: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {outcome:6}  {what:44}  {figures}", flush=True)

    @contextmanager
    def series(self, what: str, server: WindowsServer) -> Iterator[None]:
        """Checks of one server; the first that fails is the last. At the end its output is looked at."""
        try:
            yield
            for text in UNWANTED:
                expect(text not in server.output, f"{text!r} is in the output")
        except (Failure, *LOST) as error:
            self.failed(what, repr(error) if isinstance(error, LOST) else error)
            print(server.output)
        else:
            self.passed(f"{what}: nothing unwanted in the output", f"{len(server.output.splitlines())} lines")


def expect(condition: object, otherwise: str) -> None:
    if not condition:
        raise Failure(otherwise)


@dataclass
class Client:
    """Speaks HTTP to a server, each time on a new connection. ``tls`` verifies its certificate and its name."""

    server: WindowsServer
    tls: ssl.SSLContext | None = None

    def connect(self) -> http.client.HTTPConnection:
        if self.tls is None:
            return http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        return http.client.HTTPSConnection("localhost", self.server.port, timeout=PATIENCE, context=self.tls)

    def get(self, target: str = "/") -> tuple[int, str]:
        """The id of the process that answers, and its text; fails if the answer is not whole."""
        connection = self.connect()
        try:
            connection.request("GET", target, headers={"Connection": "close"})
            process, text = connection.getresponse().read().decode().split("\n")
        finally:
            connection.close()
        expect(text, "the answer is cut")
        return int(process), text

    def count(self, number: int, *, at_once: int = 4) -> Counter[int]:
        """How many of so many connections each process has answered."""
        with ThreadPoolExecutor(at_once) as threads:
            return Counter(process for process, _ in threads.map(lambda _: self.get(), range(number)))

    def count_until(self, processes: int, *, without: int | None = None) -> Counter[int]:
        """The same, one connection after the other, until so many processes have answered that are not ``without``."""
        answered: Counter[int] = Counter()

        def enough() -> bool:
            answered[self.get()[0]] += 1
            return len(answered.keys() - {without}) >= processes

        wait_until(enough, f"answers of {processes} processes; there are {dict(answered)}")
        return answered

    def lose(self, target: str) -> None:
        """Send a request that nobody may answer, because it ends the process."""
        with suppress(*LOST):
            self.get(target)

    @contextmanager
    def holding(self, processes: int) -> Iterator[list[Held]]:
        """One unfinished request in each process."""
        with ExitStack() as opened:
            found: dict[int, Held] = {}

            def enough() -> bool:
                held = Held(opened.enter_context(closing(self.connect())))
                if found.setdefault(held.process, held) is not held:
                    held.finish()
                return len(found) >= processes

            wait_until(enough, f"{processes} processes")
            yield list(found.values())


@contextmanager
def closing(connection: http.client.HTTPConnection) -> Iterator[http.client.HTTPConnection]:
    try:
        yield connection
    finally:
        connection.close()


class Held:
    """A request whose answer has begun, and ends once the request does."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        connection.putrequest("POST", "/")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        self._response = connection.getresponse()
        self.process = int(self._response.readline())

    def finish(self) -> None:
        self._connection.send(b"0\r\n\r\n")
        expect(self._response.read() == b"ended", "the answer is cut")


def show(answered: Counter[int]) -> str:
    return f"{answered.total()} connections: " + ", ".join(f"{number} by {pid}" for pid, number in answered.items())


def check_two_workers(report: Report, wine: Wine) -> None:
    with serving(wine, "--workers", "2") as server, report.series("two workers", server):
        client = Client(server)
        first, second = list(client.count_until(2))[:2]
        expect(len(wine.pythons()) == 4, f"other processes than expected: {wine.pythons()}")
        answered = client.count(100)
        expect(answered.keys() == {first, second}, f"only one worker answers: {show(answered)}")
        report.passed("two workers answer", show(answered))

        refused = client.get("/steal")[1]
        expect(refused.startswith("refused"), "the port can be taken with SO_REUSEADDR")
        report.passed("SO_REUSEADDR does not take the port", refused)
        said = wine.run(wine.python, "-m", "trioserve", "app:app", "--port", str(server.port), exit_code=3)
        report.passed("a second server is refused with exit code 3", said.strip().rpartition(" error: ")[2])

        client.lose("/die")
        answered = check_replacement(client, server, r"worker (\d+) ended with exit code 9\b")
        report.passed("a worker that dies is replaced", show(answered))
        victim = list(answered)[-1]
        client.lose(f"/terminate?pid={victim}")
        answered = check_replacement(client, server, rf"worker ({victim}) ended with exit code 15\b")
        report.passed("a worker that is terminated is replaced", show(answered))
        check_ctrl_c(report, client, processes=2)


def check_blocked_worker(report: Report, wine: Wine) -> None:
    options = ("--workers", "2", "--timeout-worker-healthcheck", "4")
    with serving(wine, *options) as server, report.series("two workers, one blocked", server):
        client = Client(server)
        client.count_until(2)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(client.lose, "/block")
            answered = check_replacement(client, server, r"worker (\d+): the event loop has been blocked")
        expect(re.search(r"app\.py:\d+ in block\b", server.output), "the stack of the blocked worker is not shown")
        report.passed("a blocked worker says where, and is replaced", show(answered))


def check_replacement(client: Client, server: WindowsServer, pattern: str) -> Counter[int]:
    """Connect again and again until two processes answer without the one that has ended; none may be refused."""
    wait_until(lambda: re.search(pattern, server.output), f"the line {pattern!r}")
    ended = re.search(pattern, server.output)
    assert ended is not None
    return client.count_until(2, without=int(ended[1]))


def check_ctrl_c(report: Report, client: Client, *, processes: int) -> None:
    server = client.server
    with client.holding(processes) as requests:
        server.press_ctrl_c()
        server.wait_for("stopping")
        for one in requests:
            one.finish()
        check_end(server)
    report.passed("Ctrl-C: requests end, and so do all", f"{processes} finished, exit code 0, no process left")


def check_end(server: WindowsServer) -> None:
    code = server.wait_ended()
    expect(code == 0, f"exit code {code}")


def check_tls_and_end_of_supervisor(report: Report, wine: Wine, tls: ssl.SSLContext) -> None:
    options = ("--workers", "2", "--limit-max-requests", "20")
    with serving(wine, *options, *TLS) as server, report.series("two workers with TLS", server):
        client = Client(server, tls)
        answered = client.count_until(4)
        report.passed("TLS, and two successors after 20 requests", show(answered))
        with client.holding(2) as requests:
            os.kill(server.main_process, signal.SIGKILL)
            server.wait_for("the supervisor has ended")
            for one in requests:
                one.finish()
            server.wait_ended()
        with suppress(ConnectionRefusedError):
            client.get()
            raise Failure("somebody still listens")
        report.passed("supervisor killed: workers finish and end", "2 finished, port closed, no process left")


def check_one_process(report: Report, wine: Wine, tls: ssl.SSLContext) -> None:
    with serving(wine) as server, report.series("one process", server):
        client = Client(server)
        report.passed("one process answers", show(client.count(100)))
        check_ctrl_c(report, client, processes=1)
    with serving(wine, *TLS) as server, report.series("one process with TLS", server):
        client = Client(server, tls)
        report.passed("one process answers with TLS", show(client.count(100)))
        with client.holding(1) as requests:
            client.get("/break")
            for one in requests:
                one.finish()
            check_end(server)
        report.passed("SIGBREAK: the request ends, and all", "1 finished, exit code 0, no process left")


def make_certificates(folder: Path) -> ssl.SSLContext:
    """Write a server's certificate and key, and return a client's context that trusts their authority alone."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
    (folder / "chain.pem").write_bytes(chain)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def main() -> int:
    """The exit code is 0 if all is well, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.windows.check", description=__doc__)
    parser.add_argument("--wine", required=True, nargs=2, metavar=("WINE", "WINESERVER"), help="the two programs")
    parser.add_argument("--folder", required=True, type=Path, help="for all of Windows; see the class Wine")
    options = parser.parse_args()
    report = Report()
    wine = Wine(tuple(options.wine), options.folder.resolve())
    try:
        report.passed("a Windows Python runs", wine.prepare())
        tls = make_certificates(wine.served)
        check_two_workers(report, wine)
        check_blocked_worker(report, wine)
        check_tls_and_end_of_supervisor(report, wine, tls)
        check_one_process(report, wine, tls)
    except Failure as failure:
        report.failed("the checks could not be made", failure)
    finally:
        wine.close()
    print("windows: all is well" if not report.failures else f"windows: {report.failures} failed")
    return bool(report.failures)


if __name__ == "__main__":
    sys.exit(main())
