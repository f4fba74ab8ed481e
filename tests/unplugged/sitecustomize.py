"""Read first by every Python that finds it: no connection to another machine is made, and each that
is asked for is noted in the file $ASKED."""

import os
import sys

EVENTS = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")
HERE = ("127.0.0.1", "::1", "localhost", None)


def refuse(event: str, arguments: tuple) -> None:
    if event not in EVENTS:
        return
    asked = arguments[0] if event.startswith("socket.get") else arguments[1]
    host = asked[0] if isinstance(asked, tuple) else asked
    if host in HERE or (isinstance(host, str) and host.startswith("/")):  # a socket of this machine
        return
    with open(os.environ["ASKED"], "a") as file:
        file.write(f"{event} {host}\n")
    raise OSError("no network here")


sys.addaudithook(refuse)
