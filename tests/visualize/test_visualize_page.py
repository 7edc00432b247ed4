import base64
import json
import re

import cv2
import numpy as np
import pytest
from press_dataset import FRAMES, H, W, frame, make

from lerobot_ext.errors import UserError
from lerobot_ext.recording.visualize.depth import PALETTE
from lerobot_ext.recording.visualize.episode import EpisodeView, open_dataset
from lerobot_ext.recording.visualize.force import sensors_of
from lerobot_ext.recording.visualize.page import episode_page
from lerobot_ext.recording.visualize.pictures import EpisodePictures


@pytest.fixture(scope="module")
def dataset(press):
    return open_dataset(press)


def test_the_view_has_the_episodes_curves_and_pictures(dataset):
    view = EpisodeView(dataset, 1)
    assert len(view) == FRAMES and view.task == "press <the block> & hold"
    assert view.times_s[-1] == pytest.approx((FRAMES - 1) / 15)
    truth = frame(20)
    np.testing.assert_allclose(view.force.values[20], truth["observation.force"])
    np.testing.assert_allclose(view.state.values[20], truth["observation.state"])
    assert view.force.names[0] == "skin.m0_x" and view.action.names[-1] == "gripper.pos"
    pictures = view.pictures(20)
    assert pictures["observation.images.side"].shape == (H, W, 3)
    depth = pictures["observation.images.side_depth"]
    known = truth["observation.images.side_depth"][..., 0] > 0
    assert np.isnan(depth[~known]).all(), "unknown depth is not a distance"
    np.testing.assert_allclose(
        depth[known] * 1e3, truth["observation.images.side_depth"][..., 0][known], atol=3
    )


def test_key_frames_are_in_order_and_hold_start_contact_peak_and_end(dataset):
    view = EpisodeView(dataset, 0)
    keys = view.key_frames()
    positions = [position for position, _ in keys]
    names = {name: position for position, name in keys}
    assert positions == sorted(set(positions)) and 4 <= len(keys) <= 7
    assert names["start"] == 0 and names["end"] == FRAMES - 1
    norm = view.force_norms().values[:, 0]
    assert names["peak force"] == norm.argmax()
    assert names["start"] < names["contact"] < names["peak force"]


FETCHES = r'(?:src|href)="(?!data:)|<script[^>]* src|@import|url\(|fetch\(|import\('


def pictures_of(page: str, kind: str) -> list[np.ndarray]:
    """RGB of the pictures in `<img>`s."""
    coded = re.findall(rf'<img[^>]*src="data:image/{kind};base64,([^"]+)"', page)
    images = [
        cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR) for data in coded
    ]
    return [image[..., ::-1] for image in images]


def test_the_page_is_one_small_file_that_fetches_nothing(dataset):
    page = episode_page(dataset, 0)
    assert len(page) < 2e6
    assert not re.findall(FETCHES, page)
    assert "press &lt;the block&gt; &amp; hold" in page
    for word in ("side_depth", "wrist", "m4_z", "gripper.pos", "peak force", "contact", "grey: unknown"):
        assert word in page
    keys = len(EpisodeView(dataset, 0).key_frames())
    assert [image.shape for image in pictures_of(page, "jpeg")] == 2 * keys * [(H, W, 3)]
    depth = pictures_of(page, "png")
    assert [image.shape for image in depth] == [*keys * [(H, W, 3)], (1, len(PALETTE) - 1, 3)]


def test_a_depth_picture_says_its_metres_and_the_bar_its_range(dataset):
    page = episode_page(dataset, 0)
    near, far = map(float, re.search(r'data-near="(\S+)" data-far="(\S+)"', page).groups())
    truth = frame(0)["observation.images.side_depth"][..., 0] / 1e3
    assert near == pytest.approx(np.percentile(truth[truth > 0], 1), abs=0.06)
    assert f"<span>{near:.3f} m</span>" in page and f"<span>{far:.3f} m</span>" in page
    assert "1st to 99th percentile of the pictures; the encoder&#x27;s range is 0.01 to 10.00 m" in page
    first = pictures_of(page, "png")[0]
    levels = (first[:, :, None] == PALETTE).all(axis=-1).argmax(axis=-1)
    unknown = levels == len(PALETTE) - 1
    assert (unknown == (truth == 0)).all()
    inside = ~unknown & (truth > near) & (truth < far)
    metres = near + levels / (len(PALETTE) - 2) * (far - near)
    np.testing.assert_allclose(metres[inside], truth[inside], atol=0.005)


def test_what_was_recorded_about_sensors_and_frames_is_on_the_page(described_page):
    pictures, path, _ = described_page
    page = path.read_text()
    assert not re.findall(FETCHES, page)
    for text in (
        "skin [µT]: norm of the change since the episode&#x27;s start".replace("&#x27;", "'"),
        "skin [µT]: channels as recorded",
        "tared at the episode&#x27;s start; subtracted µT: m0_x 0, m0_y 10,",
        "zero moved by 4.2 µT until the episode&#x27;s end",
        "mean age in ms: side 11 (at most 70), skin 3 (at most 3); 2 dropped, 1 repeated, 1 late, 1 retries",
        "skin, the same scale in the whole episode: a full arrow is",
    ):
        assert text in page or text.replace("'", "&#x27;") in page, text
    data = json.loads(re.search(r'class="data">(.*?)</script>', page)[1])
    assert len(data["film"]) == 9 == len(data["images"]["side"]) and data["film"][-1] == FRAMES - 1
    assert len(data["times"]) == FRAMES == len(data["pads"]["skin"]["moves"])
    (pad,) = pictures.pads
    truth = frame(22)["observation.force"] - np.mean(
        [frame(i)["observation.force"] for i in range(5)], axis=0
    )
    np.testing.assert_allclose(pad.vectors[22].ravel(), truth, atol=1e-4)
    dx, dy, radius, level = data["pads"]["skin"]["moves"][22][4]
    reach = pad.picture.spacing * 0.95 * data["tenths"] / pad.picture.scale.arrow
    assert (dx, dy) == (pytest.approx(truth[12] * reach, abs=1), pytest.approx(-truth[13] * reach, abs=1))
    assert level > len(data["colors"]) // 2, "pressed along z"


def test_a_recording_without_them_says_so_in_one_line(dataset):
    page = episode_page(dataset, 1)
    assert "ages and drops: not recorded for this episode." in page
    assert "skin [unit unknown]: channels as recorded" in page and "layout assumed" in page
    assert "baseline not recorded" in page


def test_a_wrench_has_a_panel_for_each_unit(dataset):
    pictures = EpisodePictures(dataset, 0)
    names = [*(f"skin.m{m}_{axis}" for m in range(3) for axis in "xyz"), *(f"ft.{n}" for n in "abcdef")]
    units = ["N"] * 3 + ["Nm"] * 3
    pictures.sensors = sensors_of(names, {"sensors": {"ft": {"units": units}, "skin": {"unit": "uT"}}})
    titles = [panel.chart.title for panel in pictures.force_panels() if panel.kind == "channels"]
    assert titles == [f"{what}: channels as recorded" for what in ("skin [µT]", "ft [N]", "ft [Nm]")]


def test_a_dataset_without_force_has_a_page_too(tmp_path):
    page = episode_page(open_dataset(make(tmp_path / "plain", force=False, episodes=1)), 0)
    assert "<h2>joints</h2>" in page and "<h2>force</h2>" not in page and 'class="player"' not in page


def test_an_episode_that_is_not_there_is_answered_with_the_range(dataset):
    with pytest.raises(UserError, match="no episode 7 .* it has 2: 0 to 1"):
        episode_page(dataset, 7)
