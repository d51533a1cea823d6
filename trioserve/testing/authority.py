"""Certificates for a server under test, and what its clients need to trust them. The home of trustme."""

from __future__ import annotations

from pathlib import Path

import trustme

from ..net.tls import SSLContext, build_client_context


class Authority(trustme.CA):
    """A certificate authority made for one server. ``bundle`` is the path of its certificate, in PEM.

    Clients load that file (``curl --cacert``, ``ssl.create_default_context(cafile=...)``), or use ``client_context``.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(organization_name="trioserve tests")
        self._folder = folder
        self.bundle = str(folder / "ca.pem")
        self.cert_pem.write_to_path(self.bundle)

    def issue_server_certificate(self, *hosts: str) -> str:
        """Issue a certificate for these names and addresses; returns the path of a file with it and its key."""
        path = self._folder / "server.pem"
        self.issue_cert(*hosts).private_key_and_cert_chain_pem.write_to_path(str(path))
        return str(path)

    def client_context(self) -> SSLContext:
        """A context that trusts this authority and nobody else."""
        return build_client_context(self.bundle)
