"""The application that the checks serve. Every answer begins with a line that names the process that gave it."""

import os
import signal
import socket
import time
from urllib.parse import parse_qs


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("lifespan shutdown of", os.getpid(), flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    text = WAYS.get(scope["path"], answer)(scope)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d\n" % os.getpid(), "more_body": True})
    # The end of the body is how a client says that a request has been held for long enough.
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.body", "body": text.encode()})


def answer(scope):
    return "ended"


def die(scope):
    os._exit(9)


def terminate(scope):
    """End another process as the task manager does: on Windows every signal but two is TerminateProcess."""
    os.kill(int(parse_qs(scope["query_string"])[b"pid"][0]), signal.SIGTERM)
    return "terminated"


def block(scope):
    time.sleep(600)
    return "ended"


def break_off(scope):
    """Take the signal that a Ctrl-Break becomes."""
    signal.raise_signal(signal.SIGBREAK)
    return "told"


def steal_port(scope):
    """Bind the server's port as one could if it were not bound exclusively."""
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            thief.bind(tuple(scope["server"]))
        except OSError as error:
            return f"refused with {type(error).__name__} {error.errno}"
    return "bound"


WAYS = {
    "/die": die,
    "/terminate": terminate,
    "/block": block,
    "/break": break_off,
    "/steal": steal_port,
}
