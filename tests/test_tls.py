"""TLS: the context, the handshake, what the application is told."""

from __future__ import annotations

import datetime
import json
import ssl
import types
from math import inf
from pathlib import Path

import pytest
import trio
import trustme
from trio.testing import memory_stream_pair

from trioserve.clock import Clock
from trioserve.config import Config
from trioserve.drain import Drain
from trioserve.errors import CertificateError
from trioserve.net.tls import TLS, build_context, describe_tls, read_server_certificate
from trioserve.net.tls_handshake import HandshakeError, handshake
from trioserve.net.tls_transport import TLSTransport

from .transports import STALL, writing_transport


class Files:
    """A private authority and, as files, a server's certificate of it."""

    def __init__(self, folder: Path, *names: str, expired: bool = False) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        self.server = self.ca.issue_cert(*(names or ("localhost",)), **({"not_after": yesterday} if expired else {}))
        self.chain = str(folder / "chain.pem")
        self.key = str(folder / "key.pem")
        self.both = str(folder / "both.pem")
        self.authorities = str(folder / "ca.pem")
        for number, blob in enumerate(self.server.cert_chain_pems):
            blob.write_to_path(self.chain, append=number > 0)
        self.server.private_key_pem.write_to_path(self.key)
        self.server.private_key_and_cert_chain_pem.write_to_path(self.both)
        self.ca.cert_pem.write_to_path(self.authorities)

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def encrypted_key(self, password: bytes) -> str:
        from cryptography.hazmat.primitives import serialization

        key = serialization.load_pem_private_key(self.server.private_key_pem.bytes(), None)
        encrypted = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password),
        )
        return self.write("encrypted.pem", encrypted.decode())

    def config(self, **options: object) -> Config:
        return Config.from_plain({"ssl_certfile": self.chain, "ssl_keyfile": self.key, **options})

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


class Meeting:
    """One handshake between a real client and ours; either side may have failed."""

    def __init__(self) -> None:
        self.server: ssl.SSLObject | None = None
        self.failure: HandshakeError | None = None
        self.client: trio.SSLStream[trio.abc.Stream] | None = None
        self.client_failure: BaseException | None = None


async def meet(context: ssl.SSLContext, client_context: ssl.SSLContext, name: str = "localhost") -> Meeting:
    meeting = Meeting()
    near, far = memory_stream_pair()

    async def serve() -> None:
        async with writing_transport(near) as transport:
            try:
                session = await handshake(transport, context, deadline=inf, drain=Drain())
                meeting.server = session.tls
                secured = TLSTransport(transport, session, Clock(), STALL)
                await secured.send(b"hello", STALL)
                await secured.flush()
            except HandshakeError as error:
                meeting.failure = error
                await transport.flush()
                await near.aclose()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            meeting.client = trio.SSLStream(far, client_context, server_hostname=name)
            try:
                # With TLS 1.3 a client learns only after its own handshake that the server refused its certificate.
                assert await meeting.client.receive_some(5) == b"hello"
            except trio.BrokenResourceError as error:
                meeting.client_failure = error.__cause__
                # A client that refuses sends an alert, which Trio drops; the end of the connection comes through.
                await far.aclose()
    return meeting


async def test_client_validates_the_chain(files: Files) -> None:
    """A client that trusts the authority completes the handshake with the chain from ssl_certfile."""
    meeting = await meet(build_context(files.config()), files.client())
    assert meeting.server is not None
    assert meeting.client is not None
    assert meeting.client.getpeercert() is not None


async def test_key_may_be_inside_the_certificate_file(files: Files) -> None:
    """Without ssl_keyfile the key is read from ssl_certfile."""
    meeting = await meet(build_context(Config(ssl_certfile=files.both)), files.client())
    assert meeting.server is not None


async def test_client_refuses_an_unknown_authority(files: Files) -> None:
    """A client with other authorities refuses, and the server's handshake fails without more."""
    meeting = await meet(build_context(files.config()), ssl.create_default_context())
    assert isinstance(meeting.client_failure, ssl.SSLCertVerificationError)
    assert meeting.failure is not None
    assert meeting.failure.reason == "connection lost"


async def test_client_refuses_a_wrong_host_name(files: Files) -> None:
    """A certificate for another name is refused by the client."""
    meeting = await meet(build_context(files.config()), files.client(), name="elsewhere.test")
    assert isinstance(meeting.client_failure, ssl.SSLCertVerificationError)
    assert "Hostname mismatch" in meeting.client_failure.verify_message


async def test_client_refuses_an_expired_certificate(tmp_path: Path) -> None:
    """An expired certificate is served, and refused by the client."""
    files = Files(tmp_path, expired=True)
    meeting = await meet(build_context(files.config()), files.client())
    assert isinstance(meeting.client_failure, ssl.SSLCertVerificationError)
    assert meeting.client_failure.verify_message == "certificate has expired"


def require_client_certificate(files: Files, **options: object) -> ssl.SSLContext:
    return build_context(files.config(ssl_ca_certs=files.authorities, ssl_cert_reqs="required", **options))


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_missing_client_certificate_is_refused(files: Files, version: str) -> None:
    """A client without the required certificate is refused, with OpenSSL's reason."""
    client = files.client()
    client.minimum_version = client.maximum_version = ssl.TLSVersion[version]
    meeting = await meet(require_client_certificate(files), client)
    assert meeting.failure is not None
    assert meeting.failure.reason == "peer did not return a certificate"


async def test_refused_client_is_told_why(files: Files) -> None:
    """The alert of a failed handshake reaches the client, not a bare end of the connection."""
    meeting = await meet(require_client_certificate(files), files.client())
    assert isinstance(meeting.client_failure, ssl.SSLError)
    assert meeting.client_failure.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED"


async def test_client_certificate_of_another_authority_is_refused(files: Files) -> None:
    """A client certificate that does not verify is refused, with the reason of the verification."""
    client = files.client()
    trustme.CA().issue_cert("mallory@example.org").configure_cert(client)
    meeting = await meet(require_client_certificate(files), client)
    assert meeting.failure is not None
    # Which of the two OpenSSL says depends on whether the authority's name is one it knows.
    assert meeting.failure.reason in (
        "unable to get local issuer certificate",
        "self-signed certificate in certificate chain",
    )


async def test_optional_client_certificate_may_be_missing(files: Files) -> None:
    """With ssl_cert_reqs=optional a client without a certificate is served."""
    context = build_context(files.config(ssl_ca_certs=files.authorities, ssl_cert_reqs="optional"))
    meeting = await meet(context, files.client())
    assert meeting.server is not None


async def test_version_below_the_minimum_is_refused(files: Files) -> None:
    """With ssl_min_version=TLSv1.3 a TLS 1.2 client is refused and told so."""
    client = files.client()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    meeting = await meet(build_context(files.config(ssl_min_version="TLSv1.3")), client)
    assert meeting.failure is not None
    assert meeting.failure.reason == "unsupported protocol"
    assert isinstance(meeting.client_failure, ssl.SSLError)
    assert meeting.client_failure.reason == "TLSV1_ALERT_PROTOCOL_VERSION"


async def test_ciphers_are_limited(files: Files) -> None:
    """ssl_ciphers chooses the TLS 1.2 cipher."""
    client = files.client()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    meeting = await meet(build_context(files.config(ssl_ciphers="ECDHE-ECDSA-CHACHA20-POLY1305")), client)
    assert meeting.server is not None
    assert meeting.server.cipher()[0] == "ECDHE-ECDSA-CHACHA20-POLY1305"


async def test_alpn_offers_http_1_1(files: Files) -> None:
    """A client that offers several protocols gets http/1.1."""
    client = files.client()
    client.set_alpn_protocols(["h2", "http/1.1"])
    meeting = await meet(build_context(files.config()), client)
    assert meeting.server is not None
    assert meeting.server.selected_alpn_protocol() == "http/1.1"


def test_renegotiation_and_compression_are_off(files: Files) -> None:
    """A client cannot make the server redo the handshake, nor compress secrets beside its own text."""
    options = build_context(files.config()).options
    assert options & ssl.OP_NO_RENEGOTIATION
    assert options & ssl.OP_NO_COMPRESSION


async def test_encrypted_key_is_opened(files: Files) -> None:
    """ssl_keyfile_password opens an encrypted key."""
    config = files.config(ssl_keyfile=files.encrypted_key(b"secret"), ssl_keyfile_password="secret")
    meeting = await meet(build_context(config), files.client())
    assert meeting.server is not None


def refusal(config: Config) -> str:
    with pytest.raises(CertificateError) as caught:
        build_context(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_encrypted_key_without_a_password_is_refused(files: Files) -> None:
    """An encrypted key without a password is an error, never a question on the terminal."""
    key = files.encrypted_key(b"secret")
    assert refusal(files.config(ssl_keyfile=key)) == (
        f"ssl_keyfile {key!r}: the private key is encrypted; give ssl_keyfile_password"
    )


def test_wrong_password_is_refused(files: Files) -> None:
    """A wrong password is named as such."""
    key = files.encrypted_key(b"secret")
    assert refusal(files.config(ssl_keyfile=key, ssl_keyfile_password="guess")) == (
        f"ssl_keyfile {key!r}: ssl_keyfile_password is wrong, or the private key is damaged"
    )


def test_too_long_password_is_refused(files: Files) -> None:
    """A password that OpenSSL cannot take is refused under the option's name."""
    key = files.encrypted_key(b"secret")
    assert refusal(files.config(ssl_keyfile=key, ssl_keyfile_password="x" * 2000)).startswith("ssl_keyfile_password: ")


def test_key_of_another_certificate_is_refused(files: Files) -> None:
    """A key that does not belong to the certificate is refused with both files."""
    other = files.write("other.pem", files.ca.issue_cert("localhost").private_key_pem.bytes().decode())
    assert refusal(files.config(ssl_keyfile=other)) == (
        f"ssl_keyfile {other!r}: the private key does not belong to the certificate in {files.chain!r}"
    )


@pytest.mark.parametrize("option", ["ssl_certfile", "ssl_keyfile", "ssl_ca_certs"])
def test_missing_file_is_refused(files: Files, option: str) -> None:
    """A file that is not there is named with its option."""
    missing = str(files.folder / "missing.pem")
    assert refusal(files.config(**{option: missing})) == f"{option} {missing!r}: no such file or directory"


def test_folder_for_a_file_is_refused(files: Files) -> None:
    """A file that cannot be read is named with the system's reason."""
    folder = str(files.folder)
    assert refusal(files.config(ssl_certfile=folder)) == f"ssl_certfile {folder!r}: is a directory"


@pytest.mark.parametrize("option", ["ssl_certfile", "ssl_ca_certs"])
def test_file_without_a_certificate_is_refused(files: Files, option: str) -> None:
    """A certificate file that is not PEM is refused."""
    junk = files.write("junk.pem", "\x00\x01 DER, perhaps")
    assert refusal(files.config(**{option: junk})) == f"{option} {junk!r}: no certificate in PEM in it"


def test_file_without_a_key_is_refused(files: Files) -> None:
    """A key file without a key is refused."""
    assert refusal(files.config(ssl_keyfile=files.chain)) == (
        f"ssl_keyfile {files.chain!r}: no private key in PEM in it"
    )


def test_certificate_alone_asks_for_the_key_file(files: Files) -> None:
    """A certificate file without a key, and no ssl_keyfile, says which option is missing."""
    assert refusal(Config(ssl_certfile=files.chain)) == (
        f"ssl_certfile {files.chain!r}: no private key in PEM in it; name its file with ssl_keyfile"
    )


BROKEN = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def test_damaged_certificate_is_refused(files: Files) -> None:
    """A certificate that looks like PEM and is none is refused in one line."""
    damaged = files.write("damaged.pem", BROKEN)
    assert "OpenSSL cannot use the certificate or the private key" in refusal(files.config(ssl_certfile=damaged))


def test_damaged_authorities_are_refused(files: Files) -> None:
    """Authorities that look like PEM and are none are refused in one line."""
    damaged = files.write("damaged.pem", BROKEN)
    assert refusal(files.config(ssl_ca_certs=damaged)).startswith(f"ssl_ca_certs {damaged!r}: not readable as PEM")


def test_unknown_ciphers_are_refused(files: Files) -> None:
    """A cipher list that selects nothing is refused."""
    assert refusal(files.config(ssl_ciphers="NONSENSE")) == (
        "ssl_ciphers 'NONSENSE': names no TLS 1.2 cipher that OpenSSL has"
    )


# The factories that ssl_context_factory names below.


def tightened(config: Config, default: types.FunctionType) -> ssl.SSLContext:
    context: ssl.SSLContext = default()
    context.set_alpn_protocols(["custom"])
    return context


def bare(config: Config, default: types.FunctionType) -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def no_context(config: Config, default: types.FunctionType) -> str:
    return "a text"


def failing(config: Config, default: types.FunctionType) -> ssl.SSLContext:
    raise LookupError("no certificate for this host")


async def test_factory_makes_the_context(files: Files) -> None:
    """The context of ssl_context_factory is used as it is, its ALPN too."""
    client = files.client()
    client.set_alpn_protocols(["http/1.1", "custom"])
    context = build_context(files.config(ssl_context_factory=f"{__name__}:tightened"))
    meeting = await meet(context, client)
    assert meeting.server is not None
    assert meeting.server.selected_alpn_protocol() == "custom"


def test_renegotiation_is_off_in_a_context_of_its_own() -> None:
    """Whatever context a factory makes, a client cannot make the server redo the handshake."""
    assert build_context(Config(ssl_context_factory=f"{__name__}:bare")).options & ssl.OP_NO_RENEGOTIATION


def test_factory_must_return_a_context() -> None:
    """Anything else that a factory returns is refused."""
    assert refusal(Config(ssl_context_factory=f"{__name__}:no_context")) == (
        f"ssl_context_factory '{__name__}:no_context' must return an SSLContext, not 'a text'"
    )


def test_failing_factory_is_refused_with_its_error() -> None:
    """What a factory raises is the cause of the CertificateError."""
    with pytest.raises(CertificateError, match="LookupError: no certificate for this host") as caught:
        build_context(Config(ssl_context_factory=f"{__name__}:failing"))
    assert isinstance(caught.value.__cause__, LookupError)


def test_factory_that_does_not_exist_is_refused() -> None:
    """A name that leads nowhere is refused."""
    assert "ModuleNotFoundError" in refusal(Config(ssl_context_factory="no_such_module_anywhere:make"))


def test_default_without_a_certificate_is_refused() -> None:
    """A factory that asks for the standard context without ssl_certfile gets, and passes on, a clear error."""
    assert refusal(Config(ssl_context_factory=f"{__name__}:tightened")) == "ssl_certfile is not given"


async def test_extension_describes_the_connection(files: Files) -> None:
    """The TLS extension carries the server's certificate, the version and the cipher in IANA's numbers."""
    context = build_context(files.config())
    certificate = read_server_certificate(files.config())
    meeting = await meet(context, files.client())
    assert meeting.server is not None
    described = describe_tls(meeting.server, TLS(context, certificate))
    assert described["server_cert"] == files.server.cert_chain_pems[0].bytes().decode()
    assert described["tls_version"] == 0x0304
    assert described["cipher_suite"] in (0x1301, 0x1302, 0x1303)
    assert described["client_cert_chain"] == []
    assert described["client_cert_name"] is None
    assert described["client_cert_error"] is None
    assert json.loads(json.dumps(described)) == described


async def test_extension_describes_tls_1_2(files: Files) -> None:
    """A TLS 1.2 connection has that version's number and its cipher's."""
    client = files.client()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    context = build_context(files.config(ssl_ciphers="ECDHE-ECDSA-AES128-GCM-SHA256"))
    meeting = await meet(context, client)
    assert meeting.server is not None
    described = describe_tls(meeting.server, TLS(context, None))
    assert described["tls_version"] == 0x0303
    assert described["cipher_suite"] == 0xC02B


async def test_extension_describes_the_client_certificate(files: Files) -> None:
    """The client's certificate comes in PEM, its subject as RFC 4514 writes it."""
    client = files.client()
    issued = files.ca.issue_cert("alice@example.org", common_name='Alice "A", Jr', organization_name="Org")
    issued.configure_cert(client)
    context = require_client_certificate(files)
    meeting = await meet(context, client)
    assert meeting.server is not None
    described = describe_tls(meeting.server, TLS(context, None))
    assert described["client_cert_chain"][0] == issued.cert_chain_pems[0].bytes().decode()
    assert described["client_cert_name"].startswith('CN=Alice \\"A\\"\\, Jr,OU=')
    assert described["client_cert_name"].endswith(",O=Org")


class FakeSSLObject:
    """What a finished handshake tells, beyond what this Python or a test certificate can make it tell."""

    def __init__(self, chain: list[bytes], subject: object = None) -> None:
        self._chain = chain
        self._subject = subject

    def get_verified_chain(self) -> list[bytes]:
        return self._chain

    def getpeercert(self, binary_form: bool = False) -> object:
        return b"leaf" if binary_form else {"subject": self._subject} if self._subject else {}

    def cipher(self) -> None:
        return None

    def version(self) -> None:
        return None


def describe(fake: FakeSSLObject) -> dict[str, object]:
    return describe_tls(fake, TLS(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), None))  # type: ignore[arg-type]  # a fake


def test_extension_has_the_verified_chain_where_python_knows_it() -> None:
    """Python 3.13 tells the whole chain, the client's own certificate first."""
    chain = describe(FakeSSLObject([b"leaf", b"root"]))["client_cert_chain"]
    assert chain == [ssl.DER_cert_to_PEM_cert(b"leaf"), ssl.DER_cert_to_PEM_cert(b"root")]


def test_extension_has_the_leaf_of_a_resumed_session() -> None:
    """Where the chain is forgotten the client's own certificate stands alone."""
    assert describe(FakeSSLObject([]))["client_cert_chain"] == [ssl.DER_cert_to_PEM_cert(b"leaf")]


def test_extension_has_none_for_what_is_unknown() -> None:
    """Version and cipher that nobody knows are None."""
    described = describe(FakeSSLObject([]))
    assert described["tls_version"] is None
    assert described["cipher_suite"] is None


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        (((("countryName", "DE"),), (("commonName", "a"), ("userId", "b"))), "CN=a+UID=b,C=DE"),
        (((("commonName", " #x "),),), r"CN=\ #x\ "),
        (((("commonName", "#x"),),), r"CN=\#x"),
        (((("commonName", " "),),), r"CN=\ "),
        (((("commonName", "a\0b;<>+\\"),),), r"CN=a\00b\;\<\>\+\\"),
        (((("serialNumber", "7"),),), "serialNumber=7"),
        (((("1.2.3.4", "x"),),), "1.2.3.4=x"),
    ],
)
def test_subject_is_written_as_rfc_4514_has_it(subject: object, name: str) -> None:
    """The last relative name comes first, short names where the RFC has them, special characters escaped."""
    assert describe(FakeSSLObject([], subject))["client_cert_name"] == name


def test_server_certificate_is_unknown_where_a_factory_chooses(files: Files) -> None:
    """With a factory, or without TLS, nobody knows which certificate is sent."""
    assert read_server_certificate(files.config(ssl_context_factory="a:b")) is None
    assert read_server_certificate(Config()) is None
