import base64
import re

import cv2
import numpy as np
import pytest
from press_dataset import FRAMES, H, W, frame, make

from lerobot_ext.errors import UserError
from lerobot_ext.recording.visualize_episode import EpisodeView, open_dataset
from lerobot_ext.recording.visualize_page import DepthScale, episode_page


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


def test_the_page_is_one_small_file_that_fetches_nothing(dataset):
    page = episode_page(dataset, 0)
    assert len(page) < 2e6
    assert not re.findall(r'(?:src|href)="(?!data:)|<script|@import|url\(', page)
    assert "press &lt;the block&gt; &amp; hold" in page
    for word in ("side_depth", "wrist", "skin.m4_z", "gripper.pos", "peak force", "contact", "grey: unknown"):
        assert word in page
    pictures = [base64.b64decode(data) for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)]
    images = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in pictures]
    assert len(images) == 3 * len(EpisodeView(dataset, 0).key_frames())
    assert all(image.shape == (H, W, 3) for image in images)


def test_a_dataset_without_force_has_a_page_too(tmp_path):
    page = episode_page(open_dataset(make(tmp_path / "plain", force=False, episodes=1)), 0)
    assert "<h2>joints</h2>" in page and "<h2>force</h2>" not in page


def test_near_and_far_have_the_ends_of_the_colors_and_unknown_none():
    scale = DepthScale.of([np.linspace(0.5, 1.0, 1000, dtype=np.float32)[None]])
    assert scale.near_m == pytest.approx(0.505, abs=1e-3)
    near, far, unknown = scale.color(np.array([[0.4, 2.0, np.nan]], np.float32))[0]
    assert near.tolist() == scale.bar()[0, 0].tolist() and far.tolist() == scale.bar()[0, -1].tolist()
    assert unknown.tolist() not in scale.bar()[0].tolist()
    assert DepthScale.of([np.full((2, 2), np.nan)]) == DepthScale(0.0, 1.0)


def test_an_episode_that_is_not_there_is_answered_with_the_range(dataset):
    with pytest.raises(UserError, match="no episode 7 .* it has 2: 0 to 1"):
        episode_page(dataset, 7)
