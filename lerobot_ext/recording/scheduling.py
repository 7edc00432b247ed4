"""Encoders come after the loop that moves the arm: what they encode can wait in a queue, the arm cannot.

SVT-AV1, LeRobot's default encoder, makes its threads and the one that calls it real-time ones (SCHED_FIFO, priority 99)
where it may, which is for root. Such a thread gives its core away to no ordinary one, and every process started from
it inherits that. It has no option against it.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

TASKS = Path("/proc/self/task")
NICE = 10
"""Of encoders: a share of a busy core a ninth of an ordinary thread's, and all that others leave."""


def stand_back(thread: threading.Thread) -> None:
    """Let a running thread, and those that it starts from now on, come after ordinary ones; only on Linux."""
    if sys.platform != "linux" or thread.native_id is None:
        return  # elsewhere niceness is of the whole process
    try:
        if (
            os.getpriority(os.PRIO_PROCESS, thread.native_id) < NICE
        ):  # going back takes a right that users do not have
            os.setpriority(os.PRIO_PROCESS, thread.native_id, NICE)
    except ProcessLookupError:
        return  # it ended meanwhile


class OrdinaryThreads:
    """Takes real-time scheduling from the threads of this process that get it after this object was made.

    A thread that somebody made a real-time one on purpose, before, stays one. Does nothing where threads are not
    listed in /proc.
    """

    def __init__(self) -> None:
        self._chosen = set(_real_time())

    def restore(self) -> int:
        """Make the threads ordinary that became real-time ones; returns how many."""
        became = [tid for tid in _real_time() if tid not in self._chosen]
        for tid in became:
            _make_ordinary(tid)
        return len(became)


def _real_time() -> list[int]:
    found = []
    for each in TASKS.iterdir() if TASKS.is_dir() else ():
        try:
            policy = os.sched_getscheduler(int(each.name))
        except ProcessLookupError:  # it ended meanwhile
            continue
        if policy in (os.SCHED_FIFO, os.SCHED_RR):
            found.append(int(each.name))
    return found


def _make_ordinary(tid: int) -> None:
    try:
        os.sched_setscheduler(tid, os.SCHED_OTHER, os.sched_param(0))
    except ProcessLookupError:
        return  # it ended meanwhile
