"""TLS: the context from file paths, and what ASGI tells the application about a connection."""

from __future__ import annotations

import pkgutil
import re
import ssl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..config import Config
from ..errors import CertificateError
from ..types import AnyValue, PlainValues

SSLContext = ssl.SSLContext

_VERIFY_MODES = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_MINIMUM_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
_VERSION_NUMBERS = {"TLSv1": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
_PRIVATE_KEY = re.compile(r"-----BEGIN ([A-Z]+ )*PRIVATE KEY-----")


@dataclass(frozen=True)
class TLS:
    """What handshakes are made with; ``certificate`` is the server's own in PEM, as applications see it."""

    context: ssl.SSLContext
    certificate: str | None

    @cached_property
    def cipher_numbers(self) -> dict[str, int]:
        """IANA's numbers of the ciphers. Kept: asking OpenSSL takes 44 µs, for each connection."""
        return {one["name"]: one["id"] & 0xFFFF for one in self.context.get_ciphers()}


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


def describe_tls(secured: ssl.SSLObject, tls: TLS) -> PlainValues:
    """The ``tls`` extension of the scope, the same for every request of a connection; ``tls`` made its handshake.

    Source: ASGI TLS Extension 0.2.
    """
    chain = _client_chain(secured)
    peer = secured.getpeercert() or {}
    cipher = secured.cipher()
    return {
        "server_cert": tls.certificate,
        "client_cert_chain": [ssl.DER_cert_to_PEM_cert(one) for one in chain],
        "client_cert_name": _distinguished_name(peer["subject"]) if "subject" in peer else None,
        # A certificate that does not verify ends the handshake.
        "client_cert_error": None,
        "tls_version": _VERSION_NUMBERS.get(secured.version() or ""),
        "cipher_suite": tls.cipher_numbers.get(cipher[0]) if cipher is not None else None,
    }


def words_of(error: ssl.SSLError) -> str:
    """OpenSSL's reason, as people write it."""
    # None where Python does not know OpenSSL's number, and not even there in errors that Python raises by itself.
    return (getattr(error, "reason", None) or "unknown error").replace("_", " ").lower()


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
            raise _file_error("ssl_ca_certs", config.ssl_ca_certs, f"not readable as PEM ({words_of(error)})") from None
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
            reason = f"OpenSSL cannot use the certificate or the private key ({words_of(error)})"
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
    # Here too: TLSTransport writes whenever it wants to, and in the middle of a renegotiation OpenSSL does not let it.
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _client_chain(secured: ssl.SSLObject) -> list[bytes]:
    get_verified_chain = getattr(secured, "get_verified_chain", None)  # Python 3.13
    chain: list[bytes] = [] if get_verified_chain is None else list(get_verified_chain())
    leaf = secured.getpeercert(binary_form=True)
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
