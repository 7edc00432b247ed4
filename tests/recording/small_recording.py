"""A recording that costs nothing and knows what is in each of its frames: two small cameras, depth, state and force."""

from pathlib import Path

import numpy as np

FPS = 10
HEIGHT, WIDTH = 48, 64
SIDE, DEPTH, WRIST = (f"observation.images.{name}" for name in ("side", "side_depth", "wrist"))
FEATURES = {
    SIDE: {"dtype": "video", "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]},
    DEPTH: {
        "dtype": "video",
        "shape": (HEIGHT, WIDTH, 1),
        "names": ["height", "width", "channels"],
        "info": {"is_depth_map": True},
    },
    WRIST: {"dtype": "video", "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]},
    "observation.state": {"dtype": "float32", "shape": (6,), "names": [f"j{i}" for i in range(6)]},
    "observation.force": {"dtype": "float32", "shape": (15,), "names": [f"f{i}" for i in range(15)]},
    "action": {"dtype": "float32", "shape": (6,), "names": [f"j{i}" for i in range(6)]},
}
VIDEOS = (SIDE, DEPTH, WRIST)

# LeRobot's depth codes: logarithmic, 12 bits; depths that are one code's exactly come back to the millimetre.
_ROWS, _COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]


def length_of(episode: int) -> int:
    """Frames of an episode: different ones."""
    return 5 + (episode * 7) % 4


def level(episode: int, index: int) -> int:
    """Grey of the pictures, far enough apart to tell any two frames near each other after encoding."""
    return 20 + (episode * 37 + index * 23) % 200


def depth_of(episode: int, index: int) -> np.ndarray:
    """(H, W, 1) uint16 millimetres."""
    return (300 + 20 * ((episode * 5 + index) % 20) + (_ROWS + _COLUMNS) % 7)[..., None].astype(np.uint16)


def frame(episode: int, index: int) -> dict:
    """One frame, as `add_frame` takes it."""
    grey = level(episode, index)
    state = np.arange(6, dtype=np.float32) + 100 * episode + index
    return {
        SIDE: np.full((HEIGHT, WIDTH, 3), grey, np.uint8),
        DEPTH: depth_of(episode, index),
        WRIST: np.full((HEIGHT, WIDTH, 3), 255 - grey, np.uint8),
        "observation.state": state,
        "observation.force": np.arange(15, dtype=np.float32) / 7 + state[0],
        "action": -state,
        "task": f"press {episode % 2}",
    }


def features(videos=VIDEOS, dtype="video", vectors=("observation.state", "observation.force", "action")):
    """The features with these cameras, kept as `dtype`, and these vectors only."""
    return {
        key: feature | ({"dtype": dtype} if feature["dtype"] == "video" else {})
        for key, feature in FEATURES.items()
        if key in (*videos, *vectors)
    }


def fast_encoder():
    """For colour: AV1 is slow to start, and these pictures are trivial."""
    from lerobot.configs import RGBEncoderConfig

    return RGBEncoderConfig(vcodec="h264", preset="ultrafast", crf=18)


def create(root: Path, streaming=True, given=None, **kwargs):
    """An empty dataset to record to."""
    from lerobot.datasets import LeRobotDataset

    return LeRobotDataset.create(
        "test/small",
        FPS,
        given or features(),
        root=root,
        robot_type="none",
        streaming_encoding=streaming,
        rgb_encoder=fast_encoder(),
        **kwargs,
    )


def resume(root: Path, streaming=True, **kwargs):
    """The dataset in `root`, to go on with."""
    from lerobot.datasets import LeRobotDataset

    return LeRobotDataset.resume(
        "test/small", root=root, streaming_encoding=streaming, rgb_encoder=fast_encoder(), **kwargs
    )


def add_frames(dataset, episode: int, count: int | None = None) -> None:
    """The frames of an episode, or the first `count` of them."""
    for index in range(length_of(episode) if count is None else count):
        given = frame(episode, index)
        dataset.add_frame({key: given[key] for key in given if key == "task" or key in dataset.features})


def record(dataset, episodes) -> None:
    """Record and save these episodes."""
    for episode in episodes:
        add_frames(dataset, episode)
        dataset.save_episode()


def load(root: Path, **kwargs):
    """The dataset as a user opens it."""
    from lerobot.datasets import LeRobotDataset

    return LeRobotDataset("test/small", root=root, video_backend="pyav", **kwargs)


def check_item(item: dict, episode: int, index: int) -> None:
    """That an item of the dataset is that frame, in every stream."""
    expected = frame(episode, index)
    assert item["episode_index"].item() == episode and item["frame_index"].item() == index
    assert item["task"] == expected["task"]
    for key in sorted({"observation.state", "observation.force", "action"} & item.keys()):
        assert np.array_equal(item[key].numpy(), expected[key]), (episode, index, key)
    for key in (SIDE, WRIST):
        if key in item:
            found = item[key].numpy().transpose(1, 2, 0) * 255
            assert found.shape == expected[key].shape
            assert np.abs(found - expected[key]).max() < 6, (episode, index, key, found.mean())
    if DEPTH in item:
        found = item[DEPTH].numpy().squeeze()
        assert np.abs(found - expected[DEPTH].squeeze()).max() < 2, (episode, index)


def check(root: Path, num_episodes: int, **kwargs) -> None:
    """That LeRobot opens `root` and finds exactly these episodes, frame by frame."""
    dataset = load(root, **kwargs)
    episodes = range(num_episodes) if dataset.episodes is None else dataset.episodes
    assert dataset.meta.total_episodes == num_episodes
    assert dataset.meta.total_frames == sum(length_of(episode) for episode in range(num_episodes))
    position = 0
    for episode in episodes:
        for index in range(length_of(episode)):
            check_item(dataset[position], episode, index)
            position += 1
    assert len(dataset) == position
