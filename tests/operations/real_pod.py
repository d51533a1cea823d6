"""What README's Kubernetes manifest starts and asks, without a cluster: from the first probe to the end of the pod."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from ..programs import Program, start, wait_until
from ..readme import blocks
from .guide import GUIDE, OWN, free_port, write_main

pytestmark = pytest.mark.timeout(180)


class Pod:
    """The one container of the manifest's pods, as a process here, with other ports."""

    def __init__(self) -> None:
        (text,) = blocks("yaml", GUIDE, "### Kubernetes")
        self.spec = next(yaml.safe_load_all(text))["spec"]["template"]["spec"]
        (self._container,) = self.spec["containers"]
        self.ports = {one["name"]: free_port() for one in self._container["ports"]}
        self._numbers = {one["name"]: one["containerPort"] for one in self._container["ports"]}
        self.drain_delay = float(self._container["args"][self._container["args"].index("--drain-delay") + 1])

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Program]:
        name, *arguments = self._container["args"]
        assert name == "trioserve"
        metrics = f"127.0.0.1:{self.ports['metrics']}"
        arguments = [one.replace(f"0.0.0.0:{self._numbers['metrics']}", metrics) for one in arguments]
        assert metrics in arguments
        arguments = [one.replace("0.0.0.0", "127.0.0.1") for one in arguments]
        # The port that the manifest names is the one that is served if nothing else is said.
        assert self._numbers["http"] == 8000
        command = [*arguments, "--port", str(self.ports["http"])]
        with start(*command, executable=str(OWN), cwd=folder) as program:
            yield program

    def probe(self, name: str) -> bool:
        """What the kubelet finds: a status from 200 to 399."""
        asked = self._container[name]["httpGet"]
        url = f"http://127.0.0.1:{self.ports[asked['port']]}{asked['path']}"
        try:
            return 200 <= httpx.get(url, trust_env=False, timeout=30).status_code < 400
        except httpx.TransportError:
            return False

    def status(self) -> int:
        """Of a request on a new connection."""
        url = f"http://127.0.0.1:{self.ports['http']}/echo/1"
        return httpx.get(url, trust_env=False, timeout=30).status_code


def test_the_life_of_a_pod(tmp_path: Path) -> None:
    """Probes say yes once it serves. At TERM readiness says no at once, and all goes on for the drain_delay."""
    write_main(tmp_path)
    pod = Pod()
    with pod.running(tmp_path) as program:
        wait_until(lambda: pod.probe("startupProbe"), "the startup probe")
        assert pod.probe("readinessProbe")
        assert pod.probe("livenessProbe")
        with connect(f"ws://127.0.0.1:{pod.ports['http']}/chat", proxy=None) as websocket:
            begun = time.monotonic()
            program.signal(signal.SIGTERM)
            wait_until(lambda: not pod.probe("readinessProbe"), "readiness says no")
            assert time.monotonic() - begun < 5
            answers = []
            ended = threading.Event()
            # Another node that has not heard of it yet.
            while time.monotonic() - begun < pod.drain_delay - 2:
                answers.append(pod.status())
                assert pod.probe("livenessProbe")
                websocket.send("hello")
                assert websocket.recv(timeout=30)
                ended.wait(0.1)
            assert set(answers) == {200}
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(timeout=30)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
            assert time.monotonic() - begun >= pod.drain_delay
        assert program.wait() == 0
        assert time.monotonic() - begun < pod.spec["terminationGracePeriodSeconds"]
