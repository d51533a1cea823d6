"""Certificates that are renewed as certbot renews them, by links and by README's hook."""

from __future__ import annotations

import grp
import http.client
import os
import shlex
import signal
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trustme

from ..programs import PATIENCE, WORKER_APP, Program, read_pid, start, wait_until
from ..readme import block
from .guide import GUIDE, commands, settings, unit

pytestmark = pytest.mark.timeout(120)

NAME = "shop.example.org"


class Lineage:
    """A folder as certbot keeps it: ``live`` has links, and ``archive`` what they point to."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.context = ssl.create_default_context()
        self._authority.configure_trust(self.context)
        self.live, self._archive = folder / "live" / NAME, folder / "archive" / NAME
        self.live.mkdir(parents=True)
        self._archive.mkdir(parents=True)
        self._version = 0
        self.renew()

    def renew(self) -> None:
        """Write the next version, and turn one link after the other, each by taking it away and making it anew."""
        self._version += 1
        made = self._authority.issue_cert("127.0.0.1", NAME)
        chain = b"".join(one.bytes() for one in made.cert_chain_pems)
        for kind, data in (("privkey", made.private_key_pem.bytes()), ("fullchain", chain)):
            target = self._archive / f"{kind}{self._version}.pem"
            target.write_bytes(data)
            target.chmod(0o600)
        for kind in ("privkey", "fullchain"):
            link = self.live / f"{kind}.pem"
            link.unlink(missing_ok=True)
            link.symlink_to(f"../../archive/{NAME}/{kind}{self._version}.pem")


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    (tmp_path / "main.py").write_text(WORKER_APP)
    return Lineage(tmp_path / "letsencrypt")


def connect(program: Program, lineage: Lineage) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection(*program.address, timeout=PATIENCE, context=lineage.context)


def ask(client: http.client.HTTPSConnection) -> str:
    """One request; returns the serial number of the certificate that the connection was opened with."""
    client.request("GET", "/")
    serial = client.sock.getpeercert()["serialNumber"]
    assert read_pid(client.getresponse())
    return serial


def serial_of_a_new_connection(program: Program, lineage: Lineage) -> str:
    with closing(connect(program, lineage)) as client:
        return ask(client)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Program]:
    with start("-m", "trioserve", "main:app", "--port", "0", *options, cwd=folder) as program:
        program.wait_for("Ctrl-C stops")
        yield program
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    assert "Traceback" not in program.errors
    assert "cannot be used" not in program.errors


@pytest.mark.parametrize("workers", ["1", "2"])
def test_links_that_are_turned(tmp_path: Path, lineage: Lineage, workers: str) -> None:
    """New handshakes get what the links point to now, within seconds, and open connections go on."""
    ((_, _, *options),) = commands("### Certificates from certbot")
    options = [one.replace("/etc/letsencrypt", str(tmp_path / "letsencrypt")) for one in options]
    with serving(tmp_path, *options, "--workers", workers) as program, closing(connect(program, lineage)) as kept:
        first = ask(kept)
        used = kept.sock
        for _ in range(2):
            known = serial_of_a_new_connection(program, lineage)
            lineage.renew()
            wait_until(lambda old=known: serial_of_a_new_connection(program, lineage) != old, "the new certificate")
        assert ask(kept) == first
        assert kept.sock is used


def test_the_hook(tmp_path: Path, lineage: Lineage) -> None:
    """What README's hook copies, for a service that may not read certbot's folder, is served after its reload."""
    group = grp.getgrgid(os.getgid()).gr_name
    target, programs = tmp_path / "etc", tmp_path / "bin"
    programs.mkdir()
    text = block(
        "#!/bin/sh\n# /etc/letsencrypt/renewal-hooks/deploy/shop\n", "sh", GUIDE, "### Certificates from certbot"
    )
    hook = tmp_path / "hook"
    hook.write_text(text.replace("/etc/shop", shlex.quote(str(target))).replace("ssl-cert", group))
    hook.chmod(0o755)
    # In the place of systemctl, which has no service here: what ExecReload= does.
    assert settings(unit("shop.service"), "Service")["ExecReload"] == "/bin/kill -HUP $MAINPID"
    (programs / "systemctl").write_text(
        '#!/bin/sh\n[ "$*" = "reload shop" ] || exit 1\n[ -z "$MAINPID" ] || kill -HUP "$MAINPID"\n'
    )
    (programs / "systemctl").chmod(0o755)

    def run(**variables: str) -> None:
        path = os.pathsep.join([str(programs), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "RENEWED_LINEAGE": str(lineage.live), "MAINPID": "", **variables}
        subprocess.run([hook], env=environment, check=True)

    run()
    files = ("--ssl-certfile", f"{target}/fullchain.pem", "--ssl-keyfile", f"{target}/privkey.pem")
    assert [oct((target / name).stat().st_mode & 0o777) for name in ("fullchain.pem", "privkey.pem")] == ["0o640"] * 2
    with serving(tmp_path, *files, "--workers", "2") as program, closing(connect(program, lineage)) as kept:
        first = ask(kept)
        lineage.renew()
        assert serial_of_a_new_connection(program, lineage) == first
        run(MAINPID=str(program.process.pid))
        program.wait_for("all workers are replaced")
        assert serial_of_a_new_connection(program, lineage) != first
        assert ask(kept) == first  # its worker has waited for it
