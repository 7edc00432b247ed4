"""Ctrl-C while an episode is saved takes effect afterwards, and is never lost."""

import os
import signal
import threading

import pytest

from lerobot_ext.recording.interrupts import SIGNALS, deferred_interrupts


@pytest.fixture(autouse=True)
def pythons_own_handler():
    """LeRobot's rollout, run by another test in this process, leaves its handlers behind."""
    before = {signum: signal.signal(signum, signal.default_int_handler) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_an_interrupt_waits_for_the_end_of_the_block():
    steps = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts("saving"):
        os.kill(os.getpid(), signal.SIGINT)
        steps.append("saved")
    assert steps == ["saved"]


def test_without_an_interrupt_the_handlers_are_as_before():
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupts("saving"):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_block_is_not_hidden():
    with pytest.raises(ZeroDivisionError), deferred_interrupts("saving"):
        raise ZeroDivisionError


def test_other_threads_are_left_alone():
    seen = []

    def work():
        with deferred_interrupts("saving"):
            seen.append("ran")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["ran"]
