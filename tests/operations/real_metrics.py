"""A real Prometheus scrapes a real server, and judges the alert rules of README.md."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

import pytest
import yaml

from tests.alert_rules import read_rules, rules_text
from tests.programs import PATIENCE, WORKER_APP, Program, read_pid, start, wait_until
from tests.test_reload import Certificates

RULES = {rule["alert"]: rule for rule in read_rules()}

# The rules look back for minutes, of which a server that has just begun would have spent most in not being there.
SOON = {name: rule["expr"].replace("[5m]", "[10s]").replace("[15m]", "[1m]") for name, rule in RULES.items()}

pytestmark = pytest.mark.timeout(200)

APP = (
    WORKER_APP
    + """
async def fail():
    raise RuntimeError("on purpose")

async def nap():
    time.sleep(1)

WAYS |= {"/fail": fail, "/nap": nap}
"""
)


class Prometheus:
    """A running Prometheus."""

    def __init__(self, address: str) -> None:
        self._address = address

    def query(self, expression: str) -> list[dict[str, str]]:
        """The labels of each result."""
        client = http.client.HTTPConnection(self._address, timeout=PATIENCE)
        with contextlib.closing(client):
            client.request("GET", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
            answer = json.loads(client.getresponse().read())
        assert answer["status"] == "success", answer
        return [one["metric"] for one in answer["data"]["result"]]

    def wait_for(self, alert, provoke=lambda: None) -> dict[str, str]:
        """Provoke until what the rule asks for is the case; returns the labels of the result."""
        found: list[dict[str, str]] = []

        def look() -> bool:
            provoke()
            time.sleep(0.1)  # a scrape comes every half second
            found[:] = self.query(SOON[alert])
            return bool(found)

        wait_until(look, f"a result of {SOON[alert]}")
        (labels,) = found
        return labels


@contextlib.contextmanager
def prometheus(folder: Path, target: str):
    """Prometheus with the rules, scraping this address every half second."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = "{}:{}".format(*free.getsockname())
    (folder / "rules.yml").write_text(rules_text())
    settings = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "trioserve", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    arguments = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *arguments], cwd=folder, stderr=log)

    def is_up() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        with contextlib.suppress(OSError, ValueError):
            return bool(Prometheus(address).query('up{job="trioserve"} == 1'))
        return False

    try:
        wait_until(is_up, "a first scrape")
        yield Prometheus(address)
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text(APP)
    return tmp_path


def ask(address: str, path: str) -> http.client.HTTPResponse:
    client = http.client.HTTPConnection(address, timeout=PATIENCE)
    client.request("GET", path, headers={"Connection": "close"})
    return client.getresponse()


def distrust(address: tuple[str, int]) -> None:
    """Begin a handshake as a client that knows no authority of the server's."""
    with socket.create_connection(address, PATIENCE) as client, contextlib.suppress(OSError):
        ssl.create_default_context().wrap_socket(client, server_hostname="127.0.0.1")


def kill_a_worker(program: Program, address: str) -> None:
    """If all are there: a request must find another while it is replaced."""
    if len(program.children()) == 2:
        os.kill(read_pid(ask(address, "/")), signal.SIGKILL)


def block_both(address: str) -> None:
    """Keep both event loops from running for a second."""
    asking = [threading.Thread(target=ask, args=(address, "/nap")) for _ in range(2)]
    for one in asking:
        one.start()
    for one in asking:
        one.join(PATIENCE)


def test_every_rule_finds_what_it_looks_for(folder: Path) -> None:
    """None of the rules accuses a server that is well, and each finds its fault when that is there."""
    certificates = Certificates(folder)
    options = ("--ssl-certfile", "both.pem", "--insecure-bind", "127.0.0.1:0", "--metrics-bind", "127.0.0.1:0")
    with start("-m", "trioserve", "main:app", "--port", "0", "--workers", "2", *options, cwd=folder) as program:
        pages = program.wait_for(r"health and metrics on http://([\d.]+:\d+)")[1]
        plain = program.wait_for(r"listening on http://([\d.]+:\d+)")[1]
        listener = "{}:{}".format(*program.address)
        with prometheus(folder, pages) as watcher:

            def use() -> bool:
                assert ask(plain, "/").status == certificates.ask(program).status == 200
                return bool(watcher.query("rate(trioserve_tls_handshakes_total[10s]) > 0"))

            wait_until(use, "figures of a server in use")
            assert [name for name, expression in SOON.items() if watcher.query(expression)] == []

            watcher.wait_for("TrioserveServerErrors", lambda: ask(plain, "/fail"))
            labels = watcher.wait_for("TrioserveTLSHandshakesFail", lambda: distrust(program.address))
            assert labels["listener"] == listener
            labels = watcher.wait_for("TrioserveOurCertificateIsRefused", lambda: distrust(program.address))
            assert (labels["listener"], labels["reason"]) == (listener, "alert unknown ca")
            watcher.wait_for("TrioserveWorkersDie", lambda: kill_a_worker(program, plain))
            watcher.wait_for("TrioserveEventLoopIsLate", lambda: block_both(plain))

            with socket.create_connection(tuple(plain.split(":")), PATIENCE) as held:
                held.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
                assert held.recv(1)
                program.signal(signal.SIGTERM)
                watcher.wait_for("TrioserveNobodyServes")
        assert program.wait() == 0


def run_promtool(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_rules(folder: Path) -> None:
    """The rules are what Prometheus reads."""
    (folder / "rules.yml").write_text(rules_text())
    assert f"SUCCESS: {len(RULES)} rules found" in run_promtool(folder, "check", "rules", "rules.yml")


def test_promtool_takes_a_scrape(folder: Path) -> None:
    """Names, kinds and helps are as Prometheus wants them."""
    with start("-m", "trioserve", "main:app", "--port", "0", "--metrics-bind", "127.0.0.1:0", cwd=folder) as program:
        pages = program.wait_for(r"health and metrics on http://([\d.]+:\d+)")[1]
        program.ask()
        text = ask(pages, "/metrics").read()
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr


LABELS = 'job="trioserve",instance="a"'
FAILED, SCANNED, RANDOM, OLD, UNKNOWN_CA = (
    f'trioserve_tls_handshake_failures_total{{{LABELS},listener=":443",reason="{reason}"}}'
    for reason in ("no shared cipher", "connection lost", "other", "wrong version number", "alert unknown ca")
)
DONE = f'trioserve_tls_handshakes_total{{{LABELS},listener=":443"}}'
SERVING = f'trioserve_workers{{{LABELS},state="serving"}}'
GOOD, BAD, BREW, LOST = (
    f'trioserve_requests_total{{{LABELS},method="{method}",outcome="ok",status="{status}"}}'
    for method, status in (("GET", "2xx"), ("GET", "5xx"), ("other", "5xx"), ("other", "4xx"))
)


@pytest.mark.parametrize(
    ("alert", "series", "fires_at"),
    [
        # One in ten fails, for an hour; then none.
        ("TrioserveTLSHandshakesFail", {FAILED: "0+10x60 600x60", DONE: "0+90x120"}, {"4m": 0, "10m": 1, "90m": 0}),
        # All fail: none was ever completed, so that there is no such series.
        ("TrioserveTLSHandshakesFail", {FAILED: "0+10x60"}, {"4m": 0, "10m": 1}),
        # One in a hundred fails, or two a minute, or whoever looks for open ports leaves at once, or sends anything.
        ("TrioserveTLSHandshakesFail", {FAILED: "0+10x60", DONE: "0+990x60"}, {"30m": 0}),
        ("TrioserveTLSHandshakesFail", {FAILED: "0+2x60", DONE: "0+1x60"}, {"30m": 0}),
        *(
            ("TrioserveTLSHandshakesFail", {reason: "0+50x60", DONE: "0+1x60"}, {"30m": 0})
            for reason in (SCANNED, RANDOM, OLD)
        ),
        # Those who send anything hide nobody else's failures.
        ("TrioserveTLSHandshakesFail", {FAILED: "0+10x60", RANDOM: "0+900x60", DONE: "0+10x60"}, {"30m": 1}),
        # All refuse our certificate, or one in a hundred does, or one now and then.
        ("TrioserveOurCertificateIsRefused", {UNKNOWN_CA: "0+5x60", DONE: "0+1x60"}, {"20m": 1}),
        ("TrioserveOurCertificateIsRefused", {UNKNOWN_CA: "0+5x60"}, {"20m": 1}),
        ("TrioserveOurCertificateIsRefused", {UNKNOWN_CA: "0+5x60", DONE: "0+500x60"}, {"20m": 0, "50m": 0}),
        ("TrioserveOurCertificateIsRefused", {UNKNOWN_CA: "0 0 0 0 1x5 2x50"}, {"20m": 0}),
        # A restart takes half a minute, or does not end.
        ("TrioserveNobodyServes", {SERVING: "4x5 0 4x50"}, {"6m": 0, "30m": 0}),
        ("TrioserveNobodyServes", {SERVING: "4x5 0x50"}, {"5m": 0, "6m": 0, "8m": 1}),
        # One in ten fails, or all do; or one in a hundred, or two a minute, or what nobody knows as a method.
        ("TrioserveServerErrors", {BAD: "0+10x60", GOOD: "0+90x60"}, {"4m": 0, "10m": 1}),
        ("TrioserveServerErrors", {BAD: "0+10x60"}, {"10m": 1}),
        ("TrioserveServerErrors", {BAD: "0+10x60", GOOD: "0+990x60"}, {"30m": 0}),
        ("TrioserveServerErrors", {BAD: "0+2x60", GOOD: "0+1x60"}, {"30m": 0}),
        ("TrioserveServerErrors", {BREW: "0+50x60", GOOD: "0+10x60"}, {"30m": 0}),
        ("TrioserveServerErrors", {BAD: "0+10x60", LOST: "0+990x60", GOOD: "0+10x60"}, {"30m": 1}),
    ],
)
def test_when_an_alert_fires(folder: Path, alert: str, series: dict[str, str], fires_at: dict[str, int]) -> None:
    """An alert fires once its fault has lasted, and not for what is ordinary."""
    rule = RULES[alert]
    labels = {"job": "trioserve", "instance": "a", "severity": rule["labels"]["severity"]}
    if "listener" in rule["expr"]:
        labels["listener"] = ":443"
    if "listener, reason" in rule["expr"]:
        labels["reason"] = "alert unknown ca"
    summary = rule["annotations"]["summary"]
    for name, value in labels.items():
        summary = summary.replace(f"{{{{ $labels.{name} }}}}", value)
    fired = {"exp_labels": labels, "exp_annotations": {"summary": summary}}
    cases = [{"eval_time": time, "alertname": alert, "exp_alerts": [fired] * count} for time, count in fires_at.items()]
    given = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": given, "alert_rule_test": cases}
    (folder / "rules.yml").write_text(rules_text())
    (folder / "tests.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": [test]}))
    run_promtool(folder, "test", "rules", "tests.yml")
