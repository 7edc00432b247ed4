"""What the doctor knows of a server and a robot at one moment; the checks fill it in, one after another.

The checks themselves are in `doctor_link` and `doctor_delay`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lerobot_ext.commands import config as config_files
from simplify_work.local import probe
from simplify_work.local.client import ActionChunk, PolicyClient
from simplify_work.wire.address import Address, parse_address
from simplify_work.wire.features import FeatureSpec
from simplify_work.wire.messages import Welcome

CONNECT_S = 3.0  # longest wait for a sign of life
ANSWER_S = 10.0  # longest wait for a chunk
FPS = 30.0  # of a robot whose YAML does not say


@dataclass
class Visit:
    """What is known so far.

    Attributes:
        address: Of the server.
        keys: This robot's folder of keys.
        config_path: The robot's YAML.
        data: What is in it.
        given: What the robot gives, under the policy's names.
        action_names: What the robot takes.
        greeting: Of the program at the address.
        welcome: Of the server.
        small_s: Seconds of small messages.
        chunks: Of full observations.
        cleanup: Closes what is open.
    """

    address: Address
    keys: str | None = None
    config_path: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    given: tuple[FeatureSpec, ...] = ()
    action_names: tuple[str, ...] = ()
    greeting: probe.Greeting | None = None
    welcome: Welcome | None = None
    small_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    chunks: list[ActionChunk] = field(default_factory=list)
    cleanup: ExitStack = field(default_factory=ExitStack)
    _client: PolicyClient | None = None
    _outcome: Welcome | Exception | None = None

    def setting(self, *path: str, default: Any = None) -> Any:
        """A value of the YAML, `default` if it is not there or null."""
        node: Any = self.data
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        return default if node is None else node

    @property
    def fps(self) -> float:
        """Control steps a second."""
        return float(self.setting("fps") or self.setting("dataset", "fps") or FPS)

    def new_client(self, **options: Any) -> PolicyClient:
        """A client of the server, closed at the end of the visit."""
        client = PolicyClient(
            self.address.endpoint,
            timeout_s=ANSWER_S,
            connect_timeout_s=CONNECT_S,
            name="lerobot-ext doctor",
            keys=self.keys,
            **options,
        )
        self.cleanup.callback(client.close)
        return client

    @property
    def client(self) -> PolicyClient:
        """The client with the codec of the YAML."""
        if self._client is None:
            options = {
                key: value
                for key in ("codec", "jpeg_quality", "shrink")
                if (value := self.setting("server", key, default=self.setting("policy", key))) is not None
            }
            self._client = self.new_client(**options)
        return self._client

    def meet(self) -> Welcome:
        """Say Hello once; the same answer, or the same error, ever after."""
        if self._outcome is None:
            try:
                self._outcome = self.client.connect()
            except Exception as error:
                self._outcome = error
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def visit(server: str, keys: str | None = None, config_path: str | None = None) -> Visit:
    """A visit to `server`; keys come from the YAML if they are not given.

    Raises:
        AddressError: If the address is none.
        UserError: If the YAML cannot be read.
    """
    data = config_files.load_yaml(config_path) if config_path else {}
    found = Visit(parse_address(server), keys, config_path, data)
    found.keys = keys or found.setting("server", "keys", default=found.setting("policy", "keys"))
    return found
