"""The dataset of `press_dataset`, made once a session; one of it as lerobot_ext's recording leaves it, and its page."""

import shutil
from pathlib import Path

import pytest
from described import describe
from press_dataset import make


@pytest.fixture(scope="session")
def press(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("data") / "press")


@pytest.fixture(scope="session")
def described(press, tmp_path_factory) -> Path:
    return describe(shutil.copytree(press, tmp_path_factory.mktemp("data") / "described"))


@pytest.fixture(scope="session")
def described_page(described, tmp_path_factory):
    """What there is to see of its episode 0, the page with it, and the folder of the tests."""
    from lerobot_ext.recording.visualize.episode import open_dataset
    from lerobot_ext.recording.visualize.page import render_page
    from lerobot_ext.recording.visualize.pictures import EpisodePictures, Options

    pictures = EpisodePictures(open_dataset(described), 0, options=Options(film=9))
    page = tmp_path_factory.mktemp("pages") / "page.html"
    page.write_text(render_page(pictures), encoding="utf-8")
    return pictures, page, Path(__file__)
