"""What the doctor's tests share: its findings as data, and programs that are no policy server."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager

import zmq

from lerobot_ext.commands.main import main


def examine(capsys, *words) -> tuple[int, dict[str, dict]]:
    """The doctor's exit status, and each check's finding by its name."""
    status = main(["doctor", "--json", *map(str, words)])
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] == (status == 0)
    return status, {each["check"]: each for each in printed["checks"]}


@contextmanager
def program_that(answer):
    """The port of a program that gives each connection to `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(6)


@contextmanager
def zmq_program(kind, answer=None):
    """The port of a ZeroMQ socket that answers every message with the frames of `answer(frames)`."""
    with zmq.Context() as context, context.socket(kind) as listening:
        listening.linger = 0
        port = listening.bind_to_random_port("tcp://127.0.0.1")
        ending = threading.Event()

        def serve():
            while not ending.is_set():
                if kind == zmq.ROUTER and listening.poll(50):
                    identity, *frames = listening.recv_multipart()
                    listening.send_multipart([identity, *answer(frames)])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield port
        ending.set()
        thread.join()
