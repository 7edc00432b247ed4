"""Each saved episode can be read at once, and a finished recording is what LeRobot itself writes."""

import json
import logging
import os

import killed
import numpy as np
import pandas as pd
import pytest
import small_recording as small
from lerobot.configs import DepthEncoderConfig
from lerobot.datasets.dataset_writer import DatasetWriter
from lerobot.datasets.video_utils import StreamingVideoEncoder

from lerobot_ext.recording import commit, episodes, lock
from lerobot_ext.recording.encoding import EncoderFailedError, PatientStreamingEncoder
from lerobot_ext.recording.episodes import EpisodeListener
from lerobot_ext.recording.lock import InUseError
from lerobot_ext.recording.writer import DurableWriter


def stock(dataset):
    """The same dataset with LeRobot's own writer and encoder."""
    dataset.writer.__class__ = DatasetWriter
    if dataset.writer._streaming_encoder is not None:
        dataset.writer._streaming_encoder.__class__ = StreamingVideoEncoder
    return dataset


def tables_of(root, folder):
    paths = sorted((root / folder).glob("*/*.parquet"))
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)


def files_of(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
def heard():
    heard = []
    listener = EpisodeListener(
        "test",
        on_frame=lambda robot: heard.append("frame"),
        on_saved=lambda root, index: heard.append(f"saved {index}"),
        on_discarded=lambda: heard.append("discarded"),
    )
    episodes.add_listener(listener)
    yield heard
    episodes.remove_listener("test")


def test_lerobots_own_constructors_make_our_writer(tmp_path):
    dataset = small.create(tmp_path / "a")
    assert type(dataset.writer) is DurableWriter
    assert type(dataset.writer._streaming_encoder) is PatientStreamingEncoder
    assert isinstance(dataset.writer, DatasetWriter)


def test_every_episode_can_be_read_before_the_next_begins_and_the_end_is_lerobots_layout(tmp_path):
    root = tmp_path / "recording"
    dataset = small.create(root)
    for episode in range(3):
        small.record(dataset, [episode])
        small.check(root, episode + 1)
    dataset.finalize()
    small.check(root, 3)
    small.check(root, 3, episodes=[0, 2])
    assert files_of(root) == sorted(
        ["data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"]
        + ["meta/info.json", "meta/stats.json", "meta/tasks.parquet"]
        + [f"videos/{key}/chunk-000/file-000.mp4" for key in small.VIDEOS]
    )
    small.check_item(dataset[0], 0, 0)
    assert dataset.num_episodes == 3 and len(dataset) == sum(map(small.length_of, range(3)))


def test_a_finished_recording_is_what_lerobot_writes(tmp_path):
    roots = {name: tmp_path / name for name in ("ours", "stock")}
    for name, root in roots.items():
        dataset = small.create(root)
        small.record(dataset if name == "ours" else stock(dataset), range(3))
        dataset.finalize()
    ours, theirs = roots.values()
    assert files_of(ours) == files_of(theirs)
    assert json.loads((ours / "meta/info.json").read_text()) == json.loads(
        (theirs / "meta/info.json").read_text()
    )
    for table in ("data", "meta/episodes"):
        found, expected = tables_of(ours, table), tables_of(theirs, table)
        assert set(found.columns) == set(expected.columns)
        for column in expected.columns:
            assert found[column].dtype == expected[column].dtype, column
            for one, other in zip(found[column], expected[column], strict=True):
                if column == "tasks":
                    assert list(one) == list(other)
                else:
                    np.testing.assert_allclose(_plain(one), _plain(other), rtol=1e-6, err_msg=column)
    found, expected = (json.loads((root / "meta/stats.json").read_text()) for root in roots.values())
    assert found.keys() == expected.keys()
    for key, stats in expected.items():
        for name, value in stats.items():
            np.testing.assert_allclose(found[key][name], value, rtol=1e-6)
    assert pd.read_parquet(ours / "meta/tasks.parquet").equals(pd.read_parquet(theirs / "meta/tasks.parquet"))


def _plain(value):
    return np.array([_plain(each) for each in value]) if hasattr(value, "__len__") else float(value)


def test_stock_and_ours_take_turns_on_one_dataset(tmp_path):
    root = tmp_path / "recording"
    dataset = stock(small.create(root))
    small.record(dataset, [0, 1])
    dataset.finalize()
    dataset = small.resume(root)
    assert dataset.num_episodes == 2
    small.record(dataset, [2])  # not finished: its videos are loose
    small.check(root, 3)
    dataset = stock(small.resume(root))
    small.record(dataset, [3, 4])
    dataset.finalize()
    small.check(root, 5)
    dataset = small.resume(root)
    small.record(dataset, [5])
    dataset.finalize()
    small.check(root, 6)
    assert not list(root.glob("videos/*/chunk-9*"))
    assert dataset.meta.episodes[5]["dataset_to_index"] == dataset.num_frames


@pytest.mark.parametrize("parallel", [True, False])
def test_pictures_kept_as_files_until_the_episode_ends(tmp_path, parallel):
    root = tmp_path / "recording"
    dataset = small.create(root, streaming=False, image_writer_threads=2 if parallel else 0)
    for episode in range(2):
        small.add_frames(dataset, episode)
        dataset.save_episode(parallel_encoding=parallel)
        small.check(root, episode + 1)
        assert not any(path.is_file() for path in (root / "images").rglob("*"))
    dataset.finalize()
    small.check(root, 2)


@pytest.mark.parametrize("given", [small.features(()), small.features((small.SIDE,), dtype="image")])
def test_datasets_without_videos_and_pictures_in_the_table(tmp_path, given):
    root = tmp_path / "recording"
    dataset = small.create(root, given=given)
    for episode in range(3):
        small.record(dataset, [episode])
        small.check(root, episode + 1)
    dataset.finalize()
    small.check(root, 3)


def test_batches_of_episodes_are_not_put_off(tmp_path, caplog):
    root = tmp_path / "recording"
    dataset = small.create(root, batch_encoding_size=5, given=small.features((small.SIDE,)), streaming=False)
    assert "video_encoding_batch_size=5 is taken as 1" in caplog.text
    small.record(dataset, [0])
    small.check(root, 1)


def test_an_episode_of_one_frame_has_all_its_statistics(tmp_path):
    root = tmp_path / "recording"
    dataset = small.create(root)
    small.record(dataset, [0])
    for _ in range(6):  # LeRobot's depth encoder fails with every third or fourth video so short
        small.add_frames(dataset, 1, 1)
        dataset.save_episode()
    dataset.finalize()
    loaded = small.load(root)
    assert loaded.meta.total_episodes == 7
    item, expected = loaded[len(loaded) - 1], small.frame(1, 0)
    assert np.abs(item[small.DEPTH].numpy() - expected[small.DEPTH].transpose(2, 0, 1)).max() < 2
    assert abs(item[small.SIDE].mean().item() * 255 - small.level(1, 0)) < 6
    columns = tables_of(root, "meta/episodes")
    grey = small.level(1, 0) / 255
    assert abs(columns[f"stats/{small.SIDE}/mean"][1][0][0][0] - grey) < 0.01


def test_recording_an_episode_again_leaves_nothing_of_the_first_try(tmp_path, heard):
    root = tmp_path / "recording"
    dataset = small.create(root)
    small.record(dataset, [0])
    small.add_frames(dataset, 7, 3)
    dataset.clear_episode_buffer()
    assert [path.name for path in root.glob("tmp*")] == []
    small.record(dataset, [1])
    small.check(root, 2)
    assert heard == ["saved 0", "discarded", "saved 1"]


def test_frames_are_announced_and_a_listener_that_fails_harms_nothing(tmp_path, heard, caplog):
    def fail(*_):
        raise RuntimeError("no")

    episodes.add_listener(EpisodeListener("failing", on_frame=fail, on_saved=fail, order=99))
    try:
        dataset = small.create(tmp_path / "recording", given=small.features(()))
        with episodes.episode("robot", dataset):
            small.record(dataset, [0])
    finally:
        episodes.remove_listener("failing")
    assert heard == ["frame"] * small.length_of(0) + ["saved 0"]
    assert caplog.text.count("the recording goes on") == 2  # one of the frames', one of the save's
    small.check(tmp_path / "recording", 1)


def test_frames_that_were_not_saved_are_dropped_at_the_end_with_a_line(tmp_path, heard, caplog):
    root = tmp_path / "recording"
    dataset = small.create(root)
    small.record(dataset, [0])
    small.add_frames(dataset, 1, 2)
    dataset.finalize()
    assert "episode 1 with 2 frames was not saved and is dropped" in caplog.text
    assert heard == ["saved 0", "discarded"]
    assert {path.name for path in root.iterdir()} == {"data", "meta", "videos"}
    small.check(root, 1)


def test_tables_that_reach_their_size_are_left_alone(tmp_path, monkeypatch):
    root = tmp_path / "recording"
    dataset = small.create(root, given=small.features(()))
    small.record(dataset, [0, 1])
    monkeypatch.setattr(commit, "DATA_TAIL_BYTES", 1)
    small.record(dataset, [2, 3])
    dataset.meta.info.data_files_size_in_mb = 0.001
    small.record(dataset, [4])
    small.check(root, 5)
    assert len(list((root / "data").glob("*/*.parquet"))) == 4
    assert len(list((root / "meta/episodes").glob("*/*.parquet"))) == 2
    dataset.meta.info.data_files_size_in_mb = 100
    dataset.finalize()
    dataset = small.resume(root)
    small.record(dataset, [5])
    dataset.finalize()
    small.check(root, 6)


def test_videos_are_joined_while_recording_when_they_reach_lerobots_size(tmp_path):
    root = tmp_path / "recording"
    dataset = small.create(root, given=small.features((small.SIDE,)))
    small.record(dataset, [0])
    size = next(root.glob("videos/*/*/*.mp4")).stat().st_size
    dataset.meta.info.video_files_size_in_mb = 2.5 * size / 2**20
    small.record(dataset, range(1, 6))
    small.check(root, 6)
    joined = sorted(root.glob("videos/*/chunk-000/*.mp4"))
    assert len(joined) == 2 and len(list(root.glob("videos/*/chunk-900/*.mp4"))) == 2
    dataset.finalize()
    small.check(root, 6)
    assert len(list(root.glob("videos/*/chunk-000/*.mp4"))) == 3
    assert not list(root.glob("videos/*/chunk-900"))


# --- what fails ---


def test_an_encoder_that_dies_is_an_error_at_once_and_costs_one_episode(tmp_path, heard):
    root = tmp_path / "recording"
    dataset = small.create(root)
    small.record(dataset, [0])
    small.add_frames(dataset, 1, 2)
    dataset.writer._streaming_encoder._frame_queues[small.DEPTH].put("no picture")
    dataset.writer._streaming_encoder._threads[small.DEPTH].join(timeout=20)
    with pytest.raises(EncoderFailedError, match=f"encoder of {small.DEPTH} died.*'str' object"):
        small.add_frames(dataset, 1, 1)
    with pytest.raises(EncoderFailedError, match=r"episode 1 is dropped, the 1 episodes before it are safe"):
        dataset.save_episode()
    assert heard == ["saved 0", "discarded"]
    assert list(root.glob("tmp*")) == []
    small.record(dataset, [1])
    dataset.finalize()
    small.check(root, 2)


def test_an_encoder_that_dies_with_its_last_frame_is_noticed_at_the_save(tmp_path):
    root = tmp_path / "recording"
    dataset = small.create(root)
    small.record(dataset, [0])
    small.add_frames(dataset, 1)
    dataset.writer._streaming_encoder._frame_queues[small.SIDE].put("no picture")
    with pytest.raises(EncoderFailedError, match=f"encoder of {small.SIDE} failed"):
        dataset.save_episode()
    small.record(dataset, [1])
    small.check(root, 2)


def test_a_video_with_another_number_of_frames_refuses_the_episode(tmp_path):
    root = tmp_path / "recording"
    dataset = small.create(root)
    small.record(dataset, [0])
    small.add_frames(dataset, 1)
    encoder = dataset.writer._streaming_encoder
    encoder._frame_queues[small.WRIST].put(small.frame(1, 0)[small.WRIST])
    length = small.length_of(1)
    with pytest.raises(EncoderFailedError, match=f"has {length + 1} frames, the episode {length}"):
        dataset.save_episode()
    small.check(root, 1)
    small.record(dataset, [1])
    dataset.finalize()
    small.check(root, 2)


def test_a_slow_encoder_is_waited_for_and_no_frame_is_lost(tmp_path, monkeypatch, caplog):
    import time

    from lerobot.datasets import video_utils

    quantize = video_utils.quantize_depth

    def slow(*args, **kwargs):
        time.sleep(0.15)
        return quantize(*args, **kwargs)

    monkeypatch.setattr(video_utils, "quantize_depth", slow)
    root = tmp_path / "recording"
    dataset = small.create(root, encoder_queue_maxsize=1)
    small.record(dataset, [0])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sum("slower than the camera" in text for text in warnings) == 1
    assert all(word in caplog.text for word in ("preset", "vcodec", "encoder_queue_maxsize"))
    small.check(root, 1)


def test_two_processes_do_not_record_to_one_folder(tmp_path):
    root = tmp_path / "recording"
    dataset = small.create(root, given=small.features(()))
    small.add_frames(dataset, 0, 1)

    def try_it():
        with pytest.raises(InUseError, match="another process is recording"):
            small.resume(root)

    assert killed.run(try_it)
    small.resume(root)  # the same process may
    dataset.finalize()
    assert killed.run(lambda: lock.check_free(root))


def test_the_depth_encoder_can_be_set_until_there_is_a_frame(tmp_path):
    dataset = small.create(tmp_path / "recording")
    dataset.writer.depth_encoder = DepthEncoderConfig(depth_max=2.0)
    small.record(dataset, [0])
    with pytest.raises(ValueError, match="before the first frame"):
        dataset.writer.depth_encoder = DepthEncoderConfig(depth_max=3.0)
    dataset.finalize()
    info = json.loads((tmp_path / "recording/meta/info.json").read_text())["features"][small.DEPTH]["info"]
    assert info["video.depth_max"] == 2.0
    small.check(tmp_path / "recording", 1)


def test_what_a_forked_process_drops_is_not_ours(tmp_path):
    root = tmp_path / "recording"
    dataset = small.create(root)
    small.add_frames(dataset, 0, 2)
    assert killed.run(lambda: dataset.writer.__del__())
    small.add_frames(dataset, 0, 0)
    for index in range(2, small.length_of(0)):
        dataset.add_frame(small.frame(0, index))
    dataset.save_episode()
    small.check(root, 1)
    assert os.path.exists(root)


# --- what LeRobot does with it ---


def test_windows_and_lerobots_tools_work_on_loose_and_on_joined_videos(tmp_path):
    from lerobot.datasets.dataset_tools import delete_episodes, merge_datasets

    root = tmp_path / "recording"
    dataset = small.create(root)
    small.record(dataset, range(3))
    other = small.create(tmp_path / "other")
    small.record(other, [3])
    for state in ("loose", "joined"):
        window = small.load(root, delta_timestamps={small.SIDE: [-0.1, 0.0], "action": [0.0, 0.1]})
        item = window[small.length_of(0) + 2]
        before, now = (item[small.SIDE][i].mean().item() * 255 for i in range(2))
        assert abs(before - small.level(1, 1)) < 6 and abs(now - small.level(1, 2)) < 6
        merge_datasets([small.load(root), small.load(other.root)], "test/both", tmp_path / f"{state}_both")
        small.check(tmp_path / f"{state}_both", 4)
        if state == "loose":
            dataset.finalize()
    fewer = delete_episodes(small.load(root), [0], tmp_path / "fewer", "test/fewer")
    assert fewer.meta.total_episodes == 2
    assert np.array_equal(fewer[0]["observation.state"], small.frame(1, 0)["observation.state"])
