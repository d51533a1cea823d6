"""Sockets and TLS: where connections come from."""
