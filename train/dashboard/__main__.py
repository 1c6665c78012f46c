"""Show runs in a browser, and steer them: python -m train.dashboard RUNS_DIR"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
from pathlib import Path

import uvicorn

from train.asking import Flags, fail
from train.dashboard.app import make_app
from train.dashboard.runs import Runs

HOST, PORT = "127.0.0.1", 8321


def listening(port: int | None) -> socket.socket:
    """A socket on this machine alone: on `port`, or the usual one, or where that is taken any other. OSError."""
    for candidate in (PORT, 0) if port is None else (port,):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, candidate))
            listener.listen(64)
            return listener
        except OSError:
            listener.close()
            if candidate == 0 or port is not None:
                raise
    raise AssertionError("a port of the system's choice is either had or an error")


def main(argv: list[str] | None = None) -> int:
    parser = Flags(prog="python -m train.dashboard", allow_abbrev=False,
                   description="Show runs in a browser, and steer those that train.")
    parser.add_argument("runs", nargs="?", default=Path("runs"), metavar="RUNS_DIR", type=Path,
                        help="folder with run folders, or one run folder (default: runs)")
    parser.add_argument("--port", type=int, metavar="N", help=f"of 127.0.0.1 (default: {PORT}, or a free one)")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input ends")
    given = parser.parse_args(argv)
    if not given.runs.is_dir():
        return fail(f"RUNS_DIR must be a folder: got {given.runs}")
    if given.port is not None and not 0 <= given.port < 65_536:
        return fail(f"--port must be in 0..65535: got {given.port}")
    try:
        listener = listening(given.port)
    except OSError as error:
        return fail(f"cannot listen on {HOST}:{given.port or PORT}: {error.strerror}")
    if given.with_parent:
        os.nice(10)
        threading.Thread(target=_end_with_parent, daemon=True).start()
    token = secrets.token_urlsafe(24)
    print(f"http://{HOST}:{listener.getsockname()[1]}/?token={token}", flush=True)
    server = uvicorn.Server(uvicorn.Config(make_app(Runs(given.runs), token), log_level="error", access_log=False,
                                           lifespan="off", ws="none", http="h11", loop="asyncio", server_header=False,
                                           timeout_keep_alive=30, timeout_graceful_shutdown=1))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        return 130
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
