"""A server that was started for one robot's process ends with it, however that process ends."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

from simplify_work.wire import private, shared
from simplify_work.wire.address import Address

logger = logging.getLogger(__name__)

_LOOK_S = 0.1


def end_with(pid: int, address: Address) -> None:
    """End this process as soon as the one that started it is gone, and leave nothing behind.

    Not by a pipe's end: whatever the robot's process forked would hold the pipe open. Not by Linux's
    PR_SET_PDEATHSIG: it follows the thread that started this process, and leaves no time to tidy up.

    Args:
        pid: Of the process that started this one. If that has ended already, this one ends at once.
        address: That this server listens on; a private folder (`simplify_work.wire.private`) is removed.
    """
    threading.Thread(target=_watch, args=(pid, address), name="parent", daemon=True).start()


def _watch(pid: int, address: Address) -> None:
    while os.getppid() == pid:
        time.sleep(_LOOK_S)
    logger.warning("process %d, which started this server, is gone; so this one ends, too", pid)
    if address.path is not None:
        private.remove(Path(address.path).parent)
    shared.remove_abandoned()  # what it had just made, and no server has taken the name of
    # Nobody is left to say goodbye to, and neither a policy that infers nor one that is being loaded is waited for.
    os._exit(1)
