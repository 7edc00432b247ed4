import threading
import time

import numpy as np
import pytest

from lerobot_ext.cameras.frameset import Frameset, FramesetSlot, Loss


def frameset(number: int = 1, age_s: float = 0.0) -> Frameset:
    return Frameset(np.zeros((2, 2, 3), np.uint8), None, 0.0, number, time.perf_counter() - age_s)


def test_the_arrays_of_a_record_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        frameset().color[:] = 1


def test_an_old_frame_is_an_error():
    slot = FramesetSlot()
    slot.publish(frameset(age_s=2))
    with pytest.raises(TimeoutError, match="2... ms old, allowed are 500 ms"):
        slot.newest(500)


def test_before_the_first_frame_there_is_nothing():
    with pytest.raises(RuntimeError, match="no frame has been captured"):
        FramesetSlot().newest(500)


def test_each_reader_gets_a_frame_once():
    slot = FramesetSlot()
    slot.publish(frameset(7))
    assert slot.unseen("color", 0.01, 500).frame_number == 7
    assert slot.unseen("depth", 0.01, 500).frame_number == 7
    with pytest.raises(TimeoutError, match="no new frame within 10 ms"):
        slot.unseen("color", 0.01, 500)


def test_a_frame_that_was_not_seen_but_is_old_is_not_passed_as_new():
    slot = FramesetSlot()
    slot.publish(frameset(7, age_s=2))
    with pytest.raises(TimeoutError, match=r"no new frame within 10 ms \(newest: number 7, 2... ms old\)"):
        slot.unseen("color", 0.01, 500)
    threading.Timer(0.05, slot.publish, [frameset(8)]).start()
    assert slot.unseen("color", 5, 500).frame_number == 8


def test_a_lost_camera_says_so_until_it_publishes_again():
    slot = FramesetSlot()
    slot.publish(frameset(1))
    slot.lose(Loss("the cable was pulled", tries_s=30))
    for read in (lambda: slot.newest(500), lambda: slot.next(0.01), lambda: slot.unseen("color", 0, 0)):
        with pytest.raises(
            ConnectionError, match=r"lost since ..:..:.. \(.*ago\): the cable was pulled.*for 30 s"
        ):
            read()
    slot.publish(frameset(2))
    assert slot.newest(500).frame_number == 2


def test_next_ignores_what_is_there_already():
    slot = FramesetSlot()
    slot.publish(frameset(1))
    threading.Timer(0.05, slot.publish, [frameset(2)]).start()
    assert slot.next(5).frame_number == 2


def test_a_failure_wakes_who_waits_and_stays():
    slot = FramesetSlot()
    threading.Timer(0.05, slot.fail, [ConnectionError("unplugged")]).start()
    for _ in range(2):
        with pytest.raises(ConnectionError, match="no more frames: unplugged"):
            slot.next(5)
