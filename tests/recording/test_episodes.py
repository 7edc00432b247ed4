"""Listeners hear each episode's start in order and its end in reverse, also when it fails."""

import pytest

from lerobot_ext.recording import episodes
from lerobot_ext.recording.episodes import EpisodeListener


@pytest.fixture
def heard():
    heard = []
    for name, order in (("b", 20), ("a", 5)):
        episodes.add_listener(
            EpisodeListener(
                name,
                on_start=lambda robot, name=name: heard.append(f"start {name} {robot}"),
                on_end=lambda robot, name=name: heard.append(f"end {name} {robot}"),
                order=order,
            )
        )
    before = dict(episodes._listeners)
    for name in before:
        if name not in ("a", "b"):
            episodes.remove_listener(name)
    yield heard
    episodes._listeners.clear()
    episodes._listeners.update({k: v for k, v in before.items() if k not in ("a", "b")})


def test_order_at_start_and_reverse_at_end(heard):
    with episodes.episode("arm"):
        heard.append("episode")
    assert heard == ["start a arm", "start b arm", "episode", "end b arm", "end a arm"]


def test_the_end_is_heard_when_the_episode_fails(heard):
    with pytest.raises(RuntimeError), episodes.episode("arm"):
        raise RuntimeError
    assert heard[-2:] == ["end b arm", "end a arm"]
