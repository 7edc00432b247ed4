"""SVT-AV1 makes its callers real-time threads for root, before every loop that moves an arm; ours takes that back."""

import os
import threading
import time

import av
import numpy as np
import pytest
import small_recording as small

from lerobot_ext.recording.scheduling import NICE, TASKS, OrdinaryThreads, _real_time, stand_back

pytestmark = pytest.mark.skipif(
    not TASKS.is_dir() or os.geteuid() != 0,
    reason="only root has real-time threads, and only Linux lists them",
)

AV1 = {"vcodec": "libsvtav1", "preset": 12}


@pytest.fixture
def may():
    if os.geteuid() != 0:
        pytest.skip("only root has real-time threads")
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pytest.skip("this root may not have real-time threads (no CAP_SYS_NICE)")
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def encode_av1(path):
    """As LeRobot does: in the thread that asks for it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libsvtav1", 30, options={"preset": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for index in range(2):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def av1_dataset(root, streaming, cameras):
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets import LeRobotDataset

    return LeRobotDataset.create(
        "test/av1",
        small.FPS,
        small.features(cameras, vectors=("observation.state", "action")),
        root=root,
        robot_type="none",
        streaming_encoding=streaming,
        rgb_encoder=RGBEncoderConfig(**AV1),
    )


def test_what_the_encoder_takes_is_given_back(may, tmp_path):
    before = OrdinaryThreads()
    encode_av1(tmp_path / "a.mp4")
    assert os.sched_getscheduler(0) == os.SCHED_FIFO, "SVT-AV1 does no longer do this: this module can go"
    assert before.restore() >= 1
    assert not _real_time()
    assert before.restore() == 0


def test_a_thread_that_somebody_chose_stays(may, tmp_path):
    chosen, over = threading.Event(), threading.Event()
    found = []

    def control_loop():
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(7))
        chosen.set()
        over.wait(60)
        found.append((os.sched_getscheduler(0), os.sched_getparam(0).sched_priority))

    thread = threading.Thread(target=control_loop)
    thread.start()
    assert chosen.wait(60)
    before = OrdinaryThreads()
    encode_av1(tmp_path / "a.mp4")
    before.restore()
    over.set()
    thread.join()
    assert found == [(os.SCHED_FIFO, 7)]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_while_it_is_recorded(may, tmp_path):
    """Both cameras' encoders are ordinary from the moment that they are open."""
    cameras = (small.SIDE, small.WRIST)
    dataset = av1_dataset(tmp_path / "a", True, cameras)
    encoder = dataset.writer._streaming_encoder
    end = time.monotonic() + 60
    index = 0
    while index < 3 or encoder._opening:
        assert time.monotonic() < end, "an encoder took no frame"
        given = small.frame(0, index)
        dataset.add_frame({key: given[key] for key in given if key == "task" or key in dataset.features})
        index += 1
        time.sleep(0.02)
    assert len(list(TASKS.iterdir())) > 10, "SVT-AV1 works in many threads"
    assert not _real_time()
    dataset.save_episode()
    dataset.finalize()
    assert dataset.num_frames == index


def test_when_it_is_encoded_afterwards(may, tmp_path):
    dataset = av1_dataset(tmp_path / "a", False, (small.SIDE,))
    for index in range(3):
        given = small.frame(0, index)
        dataset.add_frame({key: given[key] for key in given if key == "task" or key in dataset.features})
    dataset.save_episode()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert not _real_time()
    dataset.finalize()


def niceness() -> dict[int, int]:
    return {int(each.name): os.getpriority(os.PRIO_PROCESS, int(each.name)) for each in TASKS.iterdir()}


def test_encoders_and_their_threads_stand_back_and_nobody_else(tmp_path):
    before = niceness()
    dataset = small.create(tmp_path / "a")
    small.add_frames(dataset, 0)
    encoder = dataset.writer._streaming_encoder
    end = time.monotonic() + 60
    while encoder._frame_queues and any(not each.empty() for each in encoder._frame_queues.values()):
        assert time.monotonic() < end, "the encoders take no frames"
        time.sleep(0.01)
    encoders = {thread.native_id for thread in encoder._threads.values()}
    now = niceness()
    assert {now[tid] for tid in encoders} == {NICE}
    assert all(now[tid] == nice for tid, nice in before.items() if tid in now), "the others are as they were"
    dataset.save_episode()
    dataset.finalize()


def test_who_stands_further_back_stays_there():
    """Without a right of its own, a thread cannot come forward again."""
    found, may_end, back = [], threading.Event(), threading.Event()

    def run():
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        back.set()
        may_end.wait(60)
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=run)
    thread.start()
    assert back.wait(60)
    stand_back(thread)
    may_end.set()
    thread.join()
    assert found == [15]
    stand_back(thread)  # which has ended
