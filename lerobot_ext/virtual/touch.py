"""The lab's sensors of touch, each behind its port: a skin on every arm's pad, FT 300 and Net F/T at the one that presses.

Each costs next to nothing while nobody reads it. What they say is in `skin`, `ft300` and `netft`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lerobot_ext.virtual import skin
from lerobot_ext.virtual.ft300 import FT300Port
from lerobot_ext.virtual.netft import NetFTServer
from lerobot_ext.virtual.task import TICK_S
from lerobot_ext.virtual.terminal import Terminal
from lerobot_ext.virtual.trouble import Troubles


class SkinPort:
    """A skin behind its port, which was made with `keep_open=False`.

    Attributes:
        read: Whether somebody had the port open at the last tick.

    Args:
        device: Its name among the troubles.
        port: Its port.
        seed: Of noise and offsets.
    """

    def __init__(self, device: str, port: Terminal, seed: int) -> None:
        self._device, self._port = device, port
        self._skin = skin.Skin(seed)
        self.read = False

    def tick(self, force: np.ndarray, troubles: Troubles) -> None:
        """`TICK_S` have passed under `force` (N, (3,)): send what is due."""
        if not self._port.listening:
            self.read = False
            self._skin.wait(TICK_S, force)
            return
        values = self._skin.step(TICK_S, force)
        if not self.read:
            self._port.forget()  # what an earlier reader left is not news to this one
        self.read = True
        if not troubles.of(self._device):
            self._port.write(skin.frame(values))


class TouchSensors:
    """All of them, from construction to `close`; the terminals belong to whoever made them."""

    def __init__(
        self, seed: int, skin_ports: dict[str, Terminal], ft300_port: Terminal, netft_port: int = 0
    ) -> None:
        """Open what is not open yet.

        Args:
            seed: Of noise and offsets.
            skin_ports: The skins', by device, in the order of the arms; made with `keep_open=False`.
            ft300_port: The FT 300's, likewise.
            netft_port: UDP port of the Net F/T on 127.0.0.1; 0: there is none.

        Raises:
            UserError: The UDP port is taken.
        """
        self._skins = [
            SkinPort(device, port, seed + number) for number, (device, port) in enumerate(skin_ports.items())
        ]
        self._ft300 = FT300Port(ft300_port, seed)
        self._netft = NetFTServer(netft_port, seed) if netft_port else None

    def tick(self, forces: Sequence[np.ndarray], troubles: Troubles) -> None:
        """`TICK_S` have passed under `forces` (N, (3,) each, of the arms' pads): send what is due.

        A device whose trouble forbids it sends nothing.
        """
        for each, felt in zip(self._skins, forces, strict=True):
            each.tick(felt, troubles)
        force = forces[0]
        self._ft300.faults.silent = bool(troubles.of("ft300"))
        self._ft300.tick(force)
        if self._netft is not None:
            self._netft.tick(TICK_S, force)

    @property
    def read(self) -> bool:
        """Whether somebody reads one of them."""
        listened = any(port.read for port in (*self._skins, self._ft300))
        return listened or (self._netft is not None and self._netft.client is not None)

    def close(self) -> None:
        """Give the UDP port back."""
        if self._netft is not None:
            self._netft.close()
