"""TLS: the context from file paths, the handshake, and what ASGI tells the application about it.

The only home of ``ssl``.
"""

from __future__ import annotations

import pkgutil
import re
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from ..config import Config
from ..errors import CertificateError
from ..types import AnyValue, PlainValues

SSLContext = ssl.SSLContext

_PLAIN_HTTP_TEXT = b"This port speaks HTTPS; the request was plain HTTP.\n"
PLAIN_HTTP_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\n"
    b"Connection: close\r\n"
    b"\r\n"
    b"%s"
) % (len(_PLAIN_HTTP_TEXT), _PLAIN_HTTP_TEXT)
"""The whole response, for the raw transport, to a client that spoke plain HTTP to a TLS port."""

_VERIFY_MODES = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_MINIMUM_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
_VERSION_NUMBERS = {"TLSv1": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
_PRIVATE_KEY = re.compile(r"-----BEGIN ([A-Z]+ )*PRIVATE KEY-----")


class HandshakeError(Exception):
    """A client did not complete the handshake.

    ``reason`` is OpenSSL's, in few enough forms to label a counter. ``plain_http``: the client spoke HTTP without TLS,
    and nothing has been written to it, so it can still be told.
    """

    def __init__(self, reason: str, *, plain_http: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.plain_http = plain_http


@dataclass(frozen=True)
class TLS:
    """What handshakes are made with; ``certificate`` is the server's own in PEM, as applications see it."""

    context: ssl.SSLContext
    certificate: str | None


def load_tls(config: Config) -> TLS | None:
    """Build what handshakes are made with, or None without TLS; raises CertificateError."""
    if not config.uses_tls:
        return None
    try:
        return TLS(build_context(config), read_server_certificate(config))
    except OSError as error:
        # They were there a moment ago: whoever renews files renames and replaces them as we look.
        raise CertificateError(f"the certificates or the key changed while they were read: {error}") from error


def build_context(config: Config) -> ssl.SSLContext:
    """Make the server's context from the TLS options, or let ``ssl_context_factory`` make it; raises CertificateError.

    Call it again for renewed files: loading a wrong pair into a live context leaves it without a key.
    """
    if config.ssl_context_factory is not None:
        return _call_factory(config, config.ssl_context_factory)
    return _standard_context(config)


def read_server_certificate(config: Config) -> str | None:
    """The certificate that describe_tls reports, in PEM; None if a factory decides which one is sent.

    Raises CertificateError.
    """
    if config.ssl_certfile is None or config.ssl_context_factory is not None:
        return None
    return _find_certificates("ssl_certfile", config.ssl_certfile)[0]


def build_client_context(ca_bundle: str | None) -> SSLContext:
    """A context for clients under test, which trusts the authorities in this file, or with None any server."""
    if ca_bundle is not None:
        return ssl.create_default_context(cafile=ca_bundle)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def handshake(stream: trio.abc.Stream, context: ssl.SSLContext) -> trio.SSLStream[trio.abc.Stream]:
    """Do the server's side of the handshake on a fresh connection.

    On failure it raises HandshakeError and leaves ``stream`` open; the caller brings the deadline.
    """
    secured = trio.SSLStream(stream, context, server_side=True, https_compatible=False)
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        failure = _explain_failure(error.__cause__, secured)
        if not failure.plain_http:
            await _send_alert(secured)
        raise failure from error
    return secured


def describe_tls(
    secured: trio.SSLStream[trio.abc.Stream] | ssl.SSLObject, context: ssl.SSLContext, server_cert: str | None
) -> PlainValues:
    """The ``tls`` extension of the scope, the same for every request of a connection.

    ``server_cert`` is what read_server_certificate gave.

    Source: ASGI TLS Extension 0.2.
    """
    chain = _client_chain(secured)
    peer = secured.getpeercert() or {}
    cipher = secured.cipher()
    numbers = {one["name"]: one["id"] & 0xFFFF for one in context.get_ciphers()}
    return {
        "server_cert": server_cert,
        "client_cert_chain": [ssl.DER_cert_to_PEM_cert(one) for one in chain],
        "client_cert_name": _distinguished_name(peer["subject"]) if "subject" in peer else None,
        # A certificate that does not verify ends the handshake.
        "client_cert_error": None,
        "tls_version": _VERSION_NUMBERS.get(secured.version() or ""),
        "cipher_suite": numbers.get(cipher[0]) if cipher is not None else None,
    }


def _standard_context(config: Config) -> ssl.SSLContext:
    if config.ssl_certfile is None:
        raise CertificateError("ssl_certfile is not given")
    # Not create_default_context(), which reads SSLKEYLOGFILE: a library call touches no environment.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Python leaves renegotiation on: a client could make the server redo the expensive half of a handshake at will.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.minimum_version = _MINIMUM_VERSIONS[config.ssl_min_version]
    context.set_alpn_protocols(["http/1.1"])
    if config.ssl_ciphers is not None:
        try:
            context.set_ciphers(config.ssl_ciphers)
        except ssl.SSLError:
            raise CertificateError(
                f"ssl_ciphers {config.ssl_ciphers!r}: names no TLS 1.2 cipher that OpenSSL has"
            ) from None
    _load_pair(context, config, config.ssl_certfile)
    if config.ssl_ca_certs is not None:
        _find_certificates("ssl_ca_certs", config.ssl_ca_certs)
        try:
            context.load_verify_locations(cafile=config.ssl_ca_certs)
        except ssl.SSLError as error:
            raise _file_error("ssl_ca_certs", config.ssl_ca_certs, f"not readable as PEM ({_words(error)})") from None
    context.verify_mode = _VERIFY_MODES[config.ssl_cert_reqs]
    return context


def _load_pair(context: ssl.SSLContext, config: Config, certfile: str) -> None:
    # OpenSSL says "PEM lib" for nearly everything that can be wrong with these files, so we look at them first.
    _find_certificates("ssl_certfile", certfile)
    key_option, keyfile = (
        ("ssl_certfile", certfile) if config.ssl_keyfile is None else ("ssl_keyfile", config.ssl_keyfile)
    )
    if not _PRIVATE_KEY.search(_read_text(key_option, keyfile)):
        hint = "; name its file with ssl_keyfile" if config.ssl_keyfile is None else ""
        raise _file_error(key_option, keyfile, "no private key in PEM in it" + hint)
    was_asked = False

    def password() -> str:
        nonlocal was_asked
        was_asked = True
        # Without this function OpenSSL would ask on the terminal.
        if config.ssl_keyfile_password is None:
            raise _file_error(key_option, keyfile, "the private key is encrypted; give ssl_keyfile_password")
        return config.ssl_keyfile_password

    try:
        context.load_cert_chain(certfile, keyfile, password)
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            reason = f"the private key does not belong to the certificate in {certfile!r}"
        elif was_asked:
            reason = "ssl_keyfile_password is wrong, or the private key is damaged"
        else:
            reason = f"OpenSSL cannot use the certificate or the private key ({_words(error)})"
        raise _file_error(key_option, keyfile, reason) from None
    except ValueError as error:
        raise CertificateError(f"ssl_keyfile_password: {error}") from None


def _find_certificates(option: str, path: str) -> list[str]:
    certificates = [found.group() for found in _CERTIFICATE.finditer(_read_text(option, path))]
    if not certificates:
        raise _file_error(option, path, "no certificate in PEM in it")
    return certificates


def _read_text(option: str, path: str) -> str:
    try:
        # PEM is ASCII, but people put names in any encoding between the blocks.
        return Path(path).read_text(encoding="latin-1")
    except OSError as error:
        raise _file_error(option, path, (error.strerror or str(error)).lower()) from None


def _file_error(option: str, path: str, reason: str) -> CertificateError:
    return CertificateError(f"{option} {path!r}: {reason}")


def _words(error: ssl.SSLError) -> str:
    # None where Python does not know OpenSSL's number, and not even there in errors that Python raises by itself.
    return (getattr(error, "reason", None) or "unknown error").replace("_", " ").lower()


def _call_factory(config: Config, name: str) -> ssl.SSLContext:
    try:
        factory: AnyValue = pkgutil.resolve_name(name)
        context: object = factory(config, lambda: _standard_context(config))
    except CertificateError:
        raise
    # Foreign code at start-up, like the import of an application: whatever it raises is why the server cannot start.
    except (Exception, SystemExit) as error:
        raise CertificateError(f"ssl_context_factory {name!r}: {type(error).__name__}: {error}") from error
    if not isinstance(context, ssl.SSLContext):
        raise CertificateError(f"ssl_context_factory {name!r} must return an SSLContext, not {context!r}")
    return context


def _explain_failure(cause: BaseException | None, secured: trio.SSLStream[trio.abc.Stream]) -> HandshakeError:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return HandshakeError(cause.verify_message)
    if not isinstance(cause, ssl.SSLError) or isinstance(
        cause, ssl.SSLEOFError | ssl.SSLSyscallError | ssl.SSLZeroReturnError
    ):
        return HandshakeError("connection lost")
    reason = _words(cause)
    is_plain_http = reason in ("http request", "https proxy request") or (
        reason == "wrong version number" and _is_request_line_left(secured)
    )
    return HandshakeError("http request" if is_plain_http else reason, plain_http=is_plain_http)


def _is_request_line_left(secured: trio.SSLStream[trio.abc.Stream]) -> bool:
    # OpenSSL knows GET, HEAD, POST and PUT only. It has taken the first bytes of "DELETE / HTTP/1.1" for the head of a
    # record, and the rest still lies in front of it.
    return re.match(rb"[^\r\n]* HTTP/1\.[01]\r?\n", secured._incoming.read()) is not None


async def _send_alert(secured: trio.SSLStream[trio.abc.Stream]) -> None:
    # Trio drops what OpenSSL wants to say about a failed handshake. Without it the client sees a bare end of the
    # connection and cannot know that its certificate is missing or its version too old.
    alert = secured._outgoing.read()
    if alert:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await secured.transport_stream.send_all(alert)


def _client_chain(secured: trio.SSLStream[trio.abc.Stream] | ssl.SSLObject) -> list[bytes]:
    ssl_object = secured._ssl_object if isinstance(secured, trio.SSLStream) else secured
    get_verified_chain = getattr(ssl_object, "get_verified_chain", None)  # Python 3.13
    chain: list[bytes] = [] if get_verified_chain is None else list(get_verified_chain())
    leaf = ssl_object.getpeercert(binary_form=True)
    # A resumed session remembers the client's certificate without its chain.
    return chain or ([] if leaf is None else [leaf])


# RFC 4514 §3, and RFC 4519 where OpenSSL's name is not LDAP's; most others are the same in both.
_ATTRIBUTE_NAMES = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
    "surname": "sn",
}


def _distinguished_name(subject: AnyValue) -> str:
    """Write a subject, as getpeercert() gives it, as RFC 4514 has it: the last part first."""
    return ",".join(
        "+".join(f"{_ATTRIBUTE_NAMES.get(name, name)}={_escape(value)}" for name, value in part)
        for part in reversed(subject)
    )


def _escape(value: str) -> str:
    # RFC 4514 §2.4.
    escaped = re.sub(r'(["+,;<>\\]|^[ #]| $)', r"\\\1", value)
    return escaped.replace("\0", r"\00")
