"""What `lerobot-ext record` says around a recording: the disk before it, the table after it, how to go on."""

import logging
import threading
import time

import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_ext.cameras import RealSenseRGBDCameraConfig
from lerobot_ext.cameras.realsense_rgbd import RealSenseRGBDCamera
from lerobot_ext.commands import session
from lerobot_ext.commands.main import main
from lerobot_ext.errors import UserError
from lerobot_ext.recording import episodes, journal, provenance

SHORT = {"dataset.episode_time_s": 1.5, "dataset.reset_time_s": 0.1}


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """LeRobot's init_logging takes pytest's handlers away."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_the_table_and_what_lies_beside_the_data(config, lab, tmp_path, capsys):
    words = config("collect.yaml", **SHORT, **{"dataset.num_episodes": 2})
    assert main(["record", words]) == 0
    shown = capsys.readouterr().out
    root = tmp_path / "dataset"
    for row in (
        "episodes      2",
        "late frames",
        "dropped",
        "bus retries",
        "mean ages",
        "force skin",
        "free",
    ):
        assert row in shown, shown
    assert "uT" in shown and str(root) in shown
    assert "disk: " in shown and "an episode" in shown
    records = journal.read(root)
    assert [record.episode for record in records] == [0, 1]
    assert set(records[0].ages_ms) == {"side", "wrist", "skin"}
    dataset = LeRobotDataset("lab/press", root=root, video_backend="pyav")
    assert [record.frames for record in records] == [row["length"] for row in dataset.meta.episodes]
    info = dataset.meta.features["observation.images.side_depth"]["info"]
    assert (info["video.depth_min"], info["video.depth_max"]) == pytest.approx((0.099, 2.0))

    # goes on, with a recording of the camera beside it
    assert main(["record", words, "--resume=true", "--dataset.num_episodes=1", "--bags=true"]) == 0
    shown = capsys.readouterr().out
    assert "1 (and 2 from before)" in shown
    bag = tmp_path / "dataset.bags" / "side_0.bag"
    camera = RealSenseRGBDCamera(
        RealSenseRGBDCameraConfig(serial_number_or_name=str(bag), width=424, height=240, fps=30, warmup_s=0)
    )
    with camera:
        color, depth = camera.async_read_combined(timeout_ms=2000)
    assert color.shape == (240, 424, 3) and depth.any()
    assert len((root / provenance.DEVICES).read_text().splitlines()) == 1, "the same devices"


def test_a_device_that_is_lost_ends_it_with_one_sentence_and_the_way_on(config, lab, tmp_path, capsys):
    words = config("collect.yaml", **SHORT | {"dataset.num_episodes": 3, "dataset.episode_time_s": 2.5})

    def unplug():
        while not journal.read(tmp_path / "dataset"):
            time.sleep(0.05)
        time.sleep(0.8)
        lab.client.fault("skin", "unplugged")

    pulling = threading.Thread(target=unplug, daemon=True)
    pulling.start()
    try:
        assert main(["record", words]) == 2
    finally:
        pulling.join(5)
        lab.client.fault("skin", "")
    said = capsys.readouterr()
    assert "episodes      1" in said.out
    assert "To go on: lerobot-ext record" in said.out and "--resume=true" in said.out
    errors = [line for line in said.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "skin" in errors[0]
    assert LeRobotDataset("lab/press", root=tmp_path / "dataset", video_backend="pyav").num_episodes == 1


def test_an_episode_that_cannot_fit_on_the_disk_is_refused_with_numbers(config, tmp_path, capsys):
    words = config("collect.yaml", **{"dataset.episode_time_s": 1e9})
    assert main(["record", words]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "are free" in said and "GB" in said and "--dataset.root" in said
    assert not (tmp_path / "dataset").exists()


def test_our_options_never_reach_lerobots_parser():
    words, extras = session.take_extras(
        ["--config_path=a.yaml", "--bags=true", "--tare_patience_s", "3", "--resume=true"]
    )
    assert words == ["--config_path=a.yaml", "--resume=true"]
    assert extras == session.Extras(bags=True, tare_patience_s=3.0)
    assert session.take_extras(["--bags"])[1].bags
    assert not session.take_extras(["--bags=false"])[1].bags


@pytest.mark.parametrize("word", ["--bags=perhaps", "--tare_patience_s=soon", "--tare_patience_s=-1"])
def test_values_that_cannot_be(word):
    with pytest.raises(UserError, match=word.partition("=")[0]):
        session.take_extras([word])


def test_bags_need_a_realsense_and_a_place(tmp_path):
    with pytest.raises(UserError, match="realsense_rgbd"):
        session.with_bags({}, tmp_path)
    cameras = {"side": RealSenseRGBDCameraConfig(serial_number_or_name="123")}
    with pytest.raises(UserError, match=r"dataset\.root"):
        session.with_bags({"": cameras}, None)
    for number in range(2):
        session.with_bags({"": cameras}, tmp_path / "press")
        path = tmp_path / "press.bags" / f"side_{number}.bag"
        assert cameras["side"].record_bag == str(path)
        path.touch()


def test_a_folder_whose_first_episode_is_not_counted_yet_stays(tmp_path):
    root = tmp_path / "dataset"
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "episodes" / "chunk-000" / "file-000.parquet").touch()
    session.discard_if_empty(root)
    assert root.exists()


def test_stock_commands_gain_the_same_listeners():
    import lerobot_ext

    lerobot_ext.register()
    assert {"taring", "journal", "provenance", "depth_range"} <= set(episodes._listeners)
