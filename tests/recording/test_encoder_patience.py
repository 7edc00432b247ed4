"""How frames are handed to an encoder that is slow, stuck or dead, with stand-ins for its thread."""

import logging
import os
import queue
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from lerobot_ext.recording import encoding, scheduling
from lerobot_ext.recording.encoding import EncoderFailedError, PatientStreamingEncoder
from lerobot_ext.recording.scheduling import OrdinaryThreads

KEY = "observation.images.top"


class Thread:
    """An encoder's: alive until it is told otherwise; `join` runs `step`."""

    is_depth = False

    def __init__(self):
        self.alive, self.step = True, lambda: None

    def is_alive(self):
        return self.alive

    def join(self, timeout=None):
        self.step()


class Queue(queue.Queue):
    """Has room for two; when it is full it refuses so many times, each for as long as was to be waited, then has room."""

    refuses = 0

    def __init__(self, clock):
        super().__init__(2)
        self.clock, self.taken = clock, []

    def put(self, item, block=True, timeout=None):
        if self.full():
            self.clock.now += timeout
            if self.refuses:
                self.refuses -= 1
                raise queue.Full
            self.taken.append(self.get())
        super().put(item)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(encoding, "time", clock)
    return clock


@pytest.fixture
def thread():
    return Thread()


@pytest.fixture
def encoder(thread, clock):
    """In an episode."""
    encoder = PatientStreamingEncoder.__new__(PatientStreamingEncoder)
    vars(encoder).update(
        _episode_active=True,
        _frame_queues={KEY: Queue(clock)},
        _result_queues={KEY: queue.Queue()},
        _stop_events={KEY: threading.Event()},
        _threads={KEY: thread},
        _video_paths={KEY: "there.mp4"},
        _folders=[],
        _first={},
        _fed={KEY: 0},
        _waited_s={},
        _opening={KEY},
        _threads_before=SimpleNamespace(restore=lambda: restored.append(True)),
        queue_maxsize=2,
        _cleanup=lambda: None,
    )
    restored = encoder.restored = []
    return encoder


def frame(value=0):
    return np.full((2, 2, 3), value, np.uint8)


def test_a_frame_is_a_copy(encoder):
    picture = frame(1)
    encoder.feed_frame(KEY, picture)
    picture[:] = 9  # cameras use their memory again
    assert (encoder._frame_queues[KEY].get() == 1).all() and (encoder._first[KEY][0] == 1).all()


def test_a_slow_encoder_is_waited_for_and_warned_of_once(encoder, caplog):
    frames = encoder._frame_queues[KEY]
    for number in range(2):
        encoder.feed_frame(KEY, frame(number))
    assert encoder.waited_s == {} and not caplog.records
    for number in range(2, 4):
        frames.refuses = 3
        encoder.feed_frame(KEY, frame(number))
    left = [frames.get() for _ in range(2)]
    assert [each[0, 0, 0] for each in (*frames.taken, *left)] == [0, 1, 2, 3], "in order, and none is lost"
    assert encoder.waited_s == {KEY: pytest.approx(2 * 4 * encoding.WAIT_S)} and encoder._fed[KEY] == 4
    assert len(caplog.records) == 1 and "slower than the camera (2 frames wait, 2 were taken)" in caplog.text
    assert len(encoder._first[KEY]) == encoding.SHORT_FRAMES


def test_one_that_is_stuck_is_given_up(encoder, clock):
    encoder._frame_queues[KEY].refuses = 10**9
    encoder.feed_frame(KEY, frame()), encoder.feed_frame(KEY, frame())
    began = clock.now
    with pytest.raises(EncoderFailedError, match="took no frame for 120 s"):
        encoder.feed_frame(KEY, frame())
    assert clock.now - began == pytest.approx(encoding.STALL_S, abs=1)


def test_one_that_died_says_why_to_whoever_asks(encoder, thread):
    encoder.feed_frame(KEY, frame())
    thread.alive = False
    encoder._result_queues[KEY].put(("error", "No space left on device"))
    for _ in range(2):
        with pytest.raises(EncoderFailedError, match="died after at most 1 frames: No space left") as caught:
            encoder.feed_frame(KEY, frame())
    assert encoding.is_disk_full(caught.value)
    assert not encoding.is_disk_full(ValueError("something else"))
    assert encoding.is_disk_full(OSError(28, "full"))


def test_threads_become_ordinary_once_the_codec_is_open(encoder):
    frames = encoder._frame_queues[KEY]
    encoder.feed_frame(KEY, frame())
    frames.get()
    encoder.feed_frame(KEY, frame())
    assert not encoder.restored, "it has its first frame, and may just be opening"
    frames.get()
    encoder.feed_frame(KEY, frame())
    encoder.feed_frame(KEY, frame())
    assert encoder.restored == [True] and not encoder._opening, "once"


def test_the_end_is_waited_for_as_long_as_it_goes_on(encoder, thread, clock):
    frames = encoder._frame_queues[KEY]
    frames.put(1), frames.put(2)

    def take():
        clock.now += 0.9 * encoding.FLUSH_S
        thread.alive = not frames.empty()
        if thread.alive:
            frames.get()

    thread.step = take
    encoder._join(KEY, thread)
    assert clock.now > 100 + 2 * encoding.FLUSH_S
    thread.alive = True
    frames.put("left")
    thread.step = lambda: setattr(clock, "now", clock.now + 1)
    with pytest.raises(EncoderFailedError, match="did not end within 600 s; 1 frames wait"):
        encoder._join(KEY, thread)


def test_a_full_queue_has_room_for_the_end_later_and_a_dead_encoder_needs_none(encoder, thread):
    frames = encoder._frame_queues[KEY]
    frames.put(1), frames.put(2)
    frames.refuses = 3
    encoder._put_end(KEY)
    assert [frames.get(), frames.get()] == [2, None]
    frames.put(1), frames.put(2)
    thread.alive = False
    encoder._put_end(KEY)
    assert frames.qsize() == 2


def test_an_episode_that_is_thrown_away_leaves_nothing_to_encode(encoder, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "top.mp4").touch()
    encoder._folders = [folder]
    encoder._frame_queues[KEY].put(1), encoder._frame_queues[KEY].put(2)
    encoder.cancel_episode()
    assert encoder._stop_events[KEY].is_set() and encoder._frame_queues[KEY].get() is None
    assert not folder.exists() and not encoder._episode_active and encoder._first == {}
    encoder.cancel_episode()
    with pytest.raises(RuntimeError, match="No active episode"):
        encoder.feed_frame(KEY, frame())


# --- which threads are made ordinary ---


@pytest.fixture
def tasks(monkeypatch, tmp_path):
    """Threads by number, with their scheduling; None: it ends when it is asked for."""
    tasks = {}

    def of(tid):
        if tasks[tid] is None:
            raise ProcessLookupError
        return tasks[tid]

    def make(tid, policy, param):
        if tasks[tid] == "gone":
            raise ProcessLookupError
        tasks[tid] = policy

    monkeypatch.setattr(scheduling.os, "sched_getscheduler", of)
    monkeypatch.setattr(scheduling.os, "sched_setscheduler", make)
    folder = tmp_path / "task"
    monkeypatch.setattr(
        scheduling,
        "TASKS",
        SimpleNamespace(is_dir=lambda: True, iterdir=lambda: [folder / str(tid) for tid in tasks]),
    )
    return tasks


@pytest.mark.skipif(not hasattr(os, "SCHED_FIFO"), reason="Linux has it")
def test_only_those_that_became_real_time_ones_are_made_ordinary(tasks):
    tasks |= {1: os.SCHED_OTHER, 2: os.SCHED_FIFO, 3: os.SCHED_OTHER, 4: None, 5: os.SCHED_BATCH}
    before = OrdinaryThreads()
    tasks |= {1: os.SCHED_FIFO, 3: os.SCHED_RR, 6: os.SCHED_FIFO}
    assert before.restore() == 3
    assert tasks == {
        1: os.SCHED_OTHER, 2: os.SCHED_FIFO, 3: os.SCHED_OTHER, 4: None, 5: os.SCHED_BATCH, 6: os.SCHED_OTHER
    }  # fmt: skip
    assert before.restore() == 0


def test_where_threads_are_not_listed_nothing_is_done(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(scheduling, "TASKS", tmp_path / "nowhere")
    with caplog.at_level(logging.DEBUG):
        assert OrdinaryThreads().restore() == 0
