"""What options must be together, where one alone says too little."""

from __future__ import annotations

from .errors import ConfigError
from .option_texts import parse_header
from .types import PlainValues


def check_together(values: PlainValues) -> None:
    """Raise ConfigError for options that contradict each other; ``values`` are all, by name."""
    if not values["forwarded_allow_ips"]:
        for name in ("proxy_headers", "proxy_protocol"):
            if values[name]:
                raise ConfigError(
                    f"{name} needs forwarded_allow_ips: the proxies that may say who a client is, such as 127.0.0.1"
                )
    if "forwarded" in values["forwarded_headers"] and len(set(values["forwarded_headers"])) > 1:
        raise ConfigError("forwarded_headers must be forwarded alone, or without it: which counts if both come?")
    if values["ssl_certfile"] is None and values["ssl_context_factory"] is None:
        for name in ("ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs"):
            if values[name] is not None:
                raise ConfigError(f"{name} needs ssl_certfile")
    if values["request_id"] and any(name.lower() == b"x-request-id" for name, _ in map(parse_header, values["header"])):
        raise ConfigError("request_id sets X-Request-ID in each response, so it cannot go with such a header")
    if values["log_config"] is not None and values["log_format"] != "text":
        raise ConfigError(
            "log_format is for the handlers that log_config replaces; name trioserve.formatters.JSONFormatter there"
        )
    if values["reload"] and values["workers"] > 1:
        raise ConfigError(f"reload runs one worker, so it cannot go with workers={values['workers']}")
    if values["ssl_cert_reqs"] != "none" and values["ssl_context_factory"] is None:
        if values["ssl_certfile"] is None:
            raise ConfigError("ssl_cert_reqs needs ssl_certfile")
        if values["ssl_ca_certs"] is None:
            raise ConfigError(f"ssl_cert_reqs={values['ssl_cert_reqs']} needs ssl_ca_certs")
