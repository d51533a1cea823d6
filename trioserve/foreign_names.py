"""What the options of uvicorn and Hypercorn are called here, in a program and in a file; what is said of wrong names.

The flags of their command lines are a matter of ``foreign_flags``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

RENAMED = {
    # uvicorn
    "h11_max_incomplete_event_size": "limit_request_head",
    "headers": "header",
    "reload_dirs": "reload_dir",
    "reload_excludes": "reload_exclude",
    "reload_includes": "reload_include",
    "ssl_version": "ssl_min_version",
    # Hypercorn
    "accesslog": "access_log",
    "application_path": "app",
    "ca_certs": "ssl_ca_certs",
    "cert_reqs": "ssl_cert_reqs",
    "certfile": "ssl_certfile",
    "ciphers": "ssl_ciphers",
    "graceful_timeout": "timeout_graceful_shutdown",
    "h11_max_incomplete_size": "limit_request_head",
    "include_date_header": "date_header",
    "include_server_header": "server_header",
    "keep_alive_max_requests": "limit_requests_per_connection",
    "keep_alive_timeout": "timeout_keep_alive",
    "keyfile": "ssl_keyfile",
    "keyfile_password": "ssl_keyfile_password",
    "logconfig": "log_config",
    "logconfig_dict": "log_config",
    "loglevel": "log_level",
    "max_requests": "limit_max_requests",
    "max_requests_jitter": "limit_max_requests_jitter",
    "pid_path": "pid_file",
    "shutdown_timeout": "timeout_shutdown",
    "ssl_handshake_timeout": "timeout_tls_handshake",
    "startup_timeout": "timeout_startup",
    "use_reloader": "reload",
    "verify_mode": "ssl_cert_reqs",
    "websocket_max_message_size": "ws_max_size",
    "websocket_ping_interval": "ws_ping_interval",
}

NOTHING_LIKE_IT = {
    "interface": "only ASGI 3 is served",
    "loop": "it always runs on Trio",
    "worker_class": "it always runs on Trio",
    "reset_contextvars": "it is so in any case",
    "quic_bind": "HTTP/3 is not there",
    **dict.fromkeys(
        ("http2", "h2_max_concurrent_streams", "h2_max_header_list_size", "h2_max_inbound_frame_size"),
        "HTTP/2 is not there yet",
    ),
    **dict.fromkeys(
        (
            *("alpn_protocols", "alt_svc_headers", "daemon", "debug", "dogstatsd_tags", "errorlog", "group"),
            *("h11_pass_raw_headers", "logger_class", "max_app_queue_size", "read_timeout", "server_names"),
            *("statsd_host", "statsd_prefix", "umask", "user", "verify_flags", "wsgi_max_body_size"),
        ),
        "README, 'Coming from Hypercorn', says what to use",
    ),
}


def hint_at(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """What to use for an option that there is not, as the end of a text; empty if nobody can tell.

    ``prefix`` stands before the names of ours.
    """
    if name in NOTHING_LIKE_IT:
        return f"; {NOTHING_LIKE_IT[name]}"
    near = difflib.get_close_matches(name, list(known), 1)
    meant = RENAMED.get(name) or (near[0] if near else None)
    return "" if meant is None else f"; did you mean {prefix + meant!r}?"
