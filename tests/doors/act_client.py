"""An ACT client, written from the protocol alone."""

from __future__ import annotations

import pickle

import zmq

PATIENCE_MS = 60_000


class ActClient:
    """What the ACT servers' own clients are: a REQ socket and pickles."""

    def __init__(self, endpoint, protocol=pickle.DEFAULT_PROTOCOL):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.REQ)
        self.socket.connect(endpoint)
        self.protocol = protocol

    def ask(self, message):
        return self.ask_raw(pickle.dumps(message, self.protocol))

    def ask_raw(self, *parts):
        self.socket.send_multipart(parts)
        assert self.socket.poll(PATIENCE_MS), "the door did not answer"
        return pickle.loads(self.socket.recv())

    def close(self):
        self.context.destroy(linger=0)
