"""A slow or broken network between two programs of this machine: a TCP proxy with a bandwidth, a delay and losses.

It shapes the bytes of a real connection and can cut it; what the bytes mean it does not know. Nothing needs privileges,
unlike `tc netem`: `python -m lerobot_ext.virtual.network --to HOST:PORT --bandwidth_mbit=100 --delay_ms=20`.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import logging
import random
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import replace

from lerobot_ext.virtual.pipes import Conditions, Connection, Way, reset

logger = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 10.0


class Link:
    """A TCP port of 127.0.0.1 that leads to another port through a network as bad as asked for.

    Ready when made, gone after `close` or the `with` block; its thread does all the work. While the target does not
    listen, connections are reset, as a machine does whose server is gone.

    Args:
        target_host: Where connections lead to.
        target_port: Its port.
        bandwidth_mbit: See `Conditions`, as for the next three.
        delay_ms: From one end to the other.
        jitter_ms: Added to it at random.
        loss: Probability of a lost segment.
        port: To listen on; 0 chooses a free one.
        seed: Of the losses and the jitter.

    Attributes:
        port: Where it listens.
        address: The same as `tcp://127.0.0.1:PORT`.

    Raises:
        ValueError: If a condition is out of its range.
        OSError: If the port cannot be listened on.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        *,
        bandwidth_mbit: float | None = None,
        delay_ms: float = 0.0,
        jitter_ms: float = 0.0,
        loss: float = 0.0,
        port: int = 0,
        seed: int = 0,
    ) -> None:
        conditions = Conditions(bandwidth_mbit, delay_ms, jitter_ms, loss)
        self._target = (target_host, target_port)
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        random_numbers = random.Random(seed)
        self._up = Way(self._loop, conditions, random_numbers)
        self._down = Way(self._loop, conditions, random_numbers)
        self._connections: set[Connection] = set()
        self._resetting = False
        self._loop.add_reader(self._listener, self._accept)
        self._thread = threading.Thread(target=self._run, name=f"link-{self.port}", daemon=True)
        self._thread.start()

    @property
    def conditions(self) -> Conditions:
        """How the link is now."""
        return self._up.conditions

    @property
    def connections(self) -> int:
        """Number of connections through it, those accepted before a silent cut included."""
        return len(self._connections)

    @property
    def bytes_to_target(self) -> int:
        """Bytes delivered to the target since the beginning."""
        return self._up.delivered

    @property
    def bytes_to_client(self) -> int:
        """Bytes delivered to clients since the beginning."""
        return self._down.delivered

    def slow(self, **changes: float | None) -> None:
        """Change some conditions by their names; bytes that are under way keep their old ones.

        Raises:
            TypeError: If there is no condition of that name.
            ValueError: If one is out of its range.
        """
        conditions = replace(self.conditions, **changes)
        self._call(lambda: (self._up.change(conditions), self._down.change(conditions)))

    def cut(self, *, reset: bool = False, after_bytes: int = 0) -> None:
        """Take the link down.

        Without `reset` as an unplugged cable: nothing passes, nobody is told, bytes under way wait for `restore` (TCP
        would repeat them); a new connection is accepted by the kernel and hears nothing. With `reset` all connections
        are reset at once, and new ones as soon as they come.

        Args:
            reset: Tell both sides.
            after_bytes: Let so many more bytes reach the target first, to cut in the middle of a message.
        """

        def now() -> None:
            self._up.limit = None
            self._up.open = self._down.open = False
            self._resetting = reset
            if reset:
                for connection in list(self._connections):
                    connection.abort()
            else:
                self._loop.remove_reader(self._listener)

        def later() -> None:
            self._up.limit = self._up.delivered + after_bytes
            self._up.at_limit = now

        self._call(later if after_bytes else now)

    def restore(self) -> None:
        """End `cut`: connections that still stand go on with the bytes that were held, new ones are accepted."""

        def up() -> None:
            self._up.limit = None
            self._up.open = self._down.open = True
            self._resetting = False
            self._loop.add_reader(self._listener, self._accept)
            for connection in list(self._connections):
                connection.go_on()

        self._call(up)

    def inject(self, data: bytes, *, to_target: bool = True) -> None:
        """Put bytes into every connection, behind those that were delivered last: a peer that talks garbage."""

        def put() -> None:
            for connection in list(self._connections):
                (connection.up if to_target else connection.down).inject(data)

        self._call(put)

    def close(self) -> None:
        """End all connections and free the port; a second call does nothing."""
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> Link:
        """Return the link, which is ready."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close it."""
        self.close()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            for connection in list(self._connections):
                connection.abort()
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._loop.close()

    def _call(self, function: Callable[[], object]) -> None:
        """Run it in the link's thread and wait for it."""
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                function()
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        done.result(_CALL_TIMEOUT_S)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = self._listener.accept()
            if self._resetting:
                reset(client)
            else:
                Connection(client, self._target, self._up, self._down, self._connections)


def main(argv: list[str] | None = None) -> None:
    """The command: a link that stands until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m lerobot_ext.virtual.network", description=__doc__)
    parser.add_argument("--to", required=True, metavar="HOST:PORT", help="where connections lead to")
    parser.add_argument(
        "--port", type=int, default=0, help="to listen on, on 127.0.0.1 (default: a free one)"
    )
    parser.add_argument(
        "--bandwidth_mbit", type=float, help="megabits a second, each way (default: unlimited)"
    )
    parser.add_argument("--delay_ms", type=float, default=0.0, help="from one end to the other (default 0)")
    parser.add_argument(
        "--jitter_ms", type=float, default=0.0, help="up to so much more, at random (default 0)"
    )
    parser.add_argument("--loss", type=float, default=0.0, help="probability of a lost segment (default 0)")
    args = parser.parse_args(argv)
    host, colon, port = args.to.rpartition(":")
    if not (colon and host and port.isdigit() and 0 < int(port) < 65536):
        parser.error(f"--to={args.to} is not HOST:PORT; write --to=127.0.0.1:5555 for example")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    conditions = {name: getattr(args, name) for name in ("bandwidth_mbit", "delay_ms", "jitter_ms", "loss")}
    try:
        link = Link(host.strip("[]"), int(port), port=args.port, **conditions)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with link:
        logger.info("%s leads to %s: %s; Ctrl-C ends it", link.address, args.to, link.conditions)
        ended.wait()
    logger.info("%d bytes went there, %d came back", link.bytes_to_target, link.bytes_to_client)


if __name__ == "__main__":
    main()
