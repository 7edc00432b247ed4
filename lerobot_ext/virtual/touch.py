"""The lab's sensors of touch: skin, FT 300 and Net F/T, each behind its port, all fed by the same contact force.

Each costs next to nothing while nobody reads it. What they say is in `skin`, `ft300` and `netft`.
"""

from __future__ import annotations

import numpy as np

from lerobot_ext.virtual import skin
from lerobot_ext.virtual.ft300 import FT300Port
from lerobot_ext.virtual.netft import NetFTServer
from lerobot_ext.virtual.task import TICK_S
from lerobot_ext.virtual.terminal import Terminal
from lerobot_ext.virtual.trouble import Troubles


class TouchSensors:
    """The three of them, from construction to `close`; the terminals belong to whoever made them."""

    def __init__(self, seed: int, skin_port: Terminal, ft300_port: Terminal, netft_port: int = 0) -> None:
        """Open what is not open yet.

        Args:
            seed: Of noise and offsets.
            skin_port: The skin's, made with `keep_open=False`.
            ft300_port: The FT 300's, likewise.
            netft_port: UDP port of the Net F/T on 127.0.0.1; 0: there is none.

        Raises:
            UserError: The UDP port is taken.
        """
        self._skin = skin.Skin(seed)
        self._skin_port = skin_port
        self._skin_read = False
        self._ft300 = FT300Port(ft300_port, seed)
        self._netft = NetFTServer(netft_port, seed) if netft_port else None

    def tick(self, force: np.ndarray, troubles: Troubles) -> None:
        """`TICK_S` have passed under `force` (N, (3,)): send what is due, unless a device's trouble forbids it."""
        values = self._skin.step(TICK_S, force)
        if self._skin_port.listening:
            if not self._skin_read:
                self._skin_port.forget()  # what an earlier reader left is not news to this one
            self._skin_read = True
            if not troubles.of("skin"):
                self._skin_port.write(skin.frame(values))
        else:
            self._skin_read = False
        self._ft300.faults.silent = bool(troubles.of("ft300"))
        self._ft300.tick(force)
        if self._netft is not None:
            self._netft.tick(TICK_S, force)

    def close(self) -> None:
        """Give the UDP port back."""
        if self._netft is not None:
            self._netft.close()
