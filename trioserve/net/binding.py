"""From addresses to listeners.

Binding and listening are two steps because the application's start-up lies between them: an address that is taken shows
before any work is done, and no client connects before there is someone to answer.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

import trio

from ..bind import Bind, DescriptorBind, NamedDescriptorBind, TCPBind, UnixBind
from ..config import Config
from ..errors import BindError
from .bound_sockets import Name, bind_errors, bind_tcp, bind_unix
from .listeners import Listener, Socket

_Binds = Sequence[tuple[Bind, bool]]
_Found = Mapping[TCPBind, Sequence[tuple[int, Name]]]


async def bind_all(config: Config, sockets: Iterable[Socket] = (), *, bind_default: bool = True) -> list[Listener]:
    """Bind what the configuration names, and take over ready sockets; the ``listen`` of each comes later.

    ``bind_default``: use host and port when no other address is named. Owns ``sockets`` from the call on: when it
    raises (BindError), they and everything it bound are closed.
    """
    given = list(sockets)
    binds = config.binds if bind_default or config.names_address else ()
    found: dict[TCPBind, Sequence[tuple[int, Name]]] = {}
    with ExitStack() as opened:
        for one in given:
            opened.callback(one.close)
        for bind in _names_in(binds):
            with bind_errors(str(bind)):
                addresses = await trio.socket.getaddrinfo(
                    bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
            found[bind] = [(family, name) for family, _, _, _, name in addresses]
        listeners = _bind_found(config, binds, found, given)
        opened.pop_all()
    return listeners


def bind_all_now(config: Config) -> list[Listener]:
    """As bind_all, without an event loop: looking up a host name blocks the thread."""
    found: dict[TCPBind, Sequence[tuple[int, Name]]] = {}
    for bind in _names_in(config.binds):
        with bind_errors(str(bind)):
            addresses = socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        found[bind] = [(family, name) for family, _, _, _, name in addresses]
    return _bind_found(config, config.binds, found, [])


def _names_in(binds: _Binds) -> Iterable[TCPBind]:
    return dict.fromkeys(bind for bind, _ in binds if isinstance(bind, TCPBind))


def _bind_found(config: Config, binds: _Binds, found: _Found, given: Sequence[Socket]) -> list[Listener]:
    """Bind, once the addresses of each host are known; what was given stays open when this raises."""
    listeners: list[Listener] = []
    with ExitStack() as opened:
        descriptors: set[int] = set()
        for bind, tls in binds:
            if isinstance(bind, TCPBind):
                # /etc/hosts may name an address twice.
                addresses = list(dict.fromkeys(found[bind]))
                bound = bind_tcp(addresses, shares_port=config.reuse_port)
                made = [Listener.from_socket(one, tls=tls) for one in bound]
            elif isinstance(bind, UnixBind):
                one, file = bind_unix(bind.path, str(bind), config.uds_permissions)
                made = [Listener.from_socket(one, tls=tls, address=str(bind), file=file)]
            elif isinstance(bind, NamedDescriptorBind):
                # Only the command line and run() ask systemd for the numbers of its names.
                raise BindError(errno.EBADF, "there is no inherited descriptor of this name", str(bind))
            elif bind.number not in descriptors:
                descriptors.add(bind.number)
                made = [_take_descriptor(bind, tls=tls)]
            else:
                # Two owners of one descriptor would close it twice, the second time somebody else's.
                raise BindError(errno.EADDRINUSE, "the descriptor is named twice", str(bind))
            for listener in made:
                opened.callback(listener.close)
            listeners += made
        listeners += [Listener.from_socket(one, tls=config.uses_tls) for one in given]
        opened.pop_all()
    return listeners


def _take_descriptor(bind: DescriptorBind, *, tls: bool) -> Listener:
    address = str(bind)
    with bind_errors(address):
        try:
            # Without a family Python asks the descriptor for its own.
            taken = socket.socket(fileno=bind.number)
        except OSError as error:
            if error.errno == errno.ENOTSOCK:
                raise BindError(errno.ENOTSOCK, "the descriptor is not a socket", address) from None
            raise
        try:
            return Listener.from_socket(taken, tls=tls, address=address)
        except BindError:
            # It is not what we were promised, so it is not ours to close.
            taken.detach()
            raise
