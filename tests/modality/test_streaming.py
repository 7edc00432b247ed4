import pickle
import shutil

import numpy as np
import pytest
import torch
from small_dataset import EPISODES, FPS, FRAMES, HEIGHT, WIDTH, make_dataset

from lerobot_ext.errors import UserError
from lerobot_ext.modality import DepthSelection, ForceSelection, ModalityStep, Selection
from lerobot_ext.modality.streaming import SelectedStream, select_streaming, split_stream
from lerobot_ext.modality.texts import TEXT_BYTES, pack, unpack
from lerobot_ext.modality.view import select_dataset

SIDE, DEPTH, WRIST = (f"observation.images.{name}" for name in ("side", "side_depth", "wrist"))
ALL = Selection(None, DepthSelection(), ForceSelection(), True, (32, 48))
TOKEN = Selection(("side",), DepthSelection(), ForceSelection("token", 30))
WINDOWS = {
    "action": [i / FPS for i in range(5)],
    "observation.state": [-1 / FPS, 0.0],
    "observation.force": [-1 / FPS, 0.0],
    WRIST: [-1 / FPS, 0.0],
    DEPTH: [-2 / FPS, 0.0, 3 / FPS],
}
EVERY_FRAME = list(range(EPISODES * FRAMES))


@pytest.fixture(scope="module")
def rolled_root(tmp_path_factory):
    """The same dataset with a file for each episode, of table and video: where one begins, its clock is at 0."""
    root = tmp_path_factory.mktemp("data") / "rolled"
    make_dataset(root, video_files_size_in_mb=0.001, data_files_size_in_mb=0.001)
    assert len(list(root.glob("videos/*/*/*.mp4"))) == 3 * EPISODES
    assert len(list(root.glob("data/*/*.parquet"))) == EPISODES
    return root


@pytest.fixture
def stream(dataset_root):
    def open_it(selection=ALL, root=dataset_root, drop_n_last_frames=0, **options):
        from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset

        dataset = StreamingLeRobotDataset("test/all", root=root, return_uint8=True, **options)
        return select_streaming(dataset, selection, "pyav", drop_n_last_frames)

    return open_it


@pytest.fixture
def rows_only(monkeypatch):
    """Give out (episode, frame) in the place of items, which take time to decode."""
    from lerobot_ext.modality.reader import TableReader

    def row(self, index):
        row = self.hf_dataset[index]
        return {"index": row["index"], "episode_index": row["episode_index"]}

    monkeypatch.setattr(TableReader, "get_item", row)


def indices(items) -> list[int]:
    return [int(item["index"]) for item in items]


def assert_same_items(items, view):
    seen = set()
    for item in items:
        expected = view[int(item["index"])]
        assert item.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert item[key].dtype == value.dtype, key
                torch.testing.assert_close(item[key], value, atol=0, rtol=0, msg=key)
            else:
                assert item[key] == value, key
        seen.add(int(item["index"]))
    assert seen == set(range(len(view)))


@pytest.mark.parametrize(
    ("selection", "windows"), [(ALL, None), (ALL, WINDOWS), (TOKEN, {"action": [0.0, 1 / FPS]})]
)
def test_items_are_those_of_a_dataset_on_disk(rolled_root, stream, selection, windows):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    on_disk = LeRobotDataset(
        "test/all", root=rolled_root, return_uint8=True, video_backend="pyav", delta_timestamps=windows
    )
    items = list(stream(selection, rolled_root, delta_timestamps=windows))
    assert_same_items(items, select_dataset(on_disk, selection))
    if selection is TOKEN:
        assert items[0]["observation.force"].shape[0] == items[0]["observation.force_is_pad"].shape[0] == 30


@pytest.mark.parametrize("representation", ["gray", "turbo"])
def test_metadata_is_that_of_a_dataset_on_disk(open_dataset, stream, representation):
    selection = Selection(("wrist",), DepthSelection(representation=representation), ForceSelection())
    streamed, view = stream(selection), select_dataset(open_dataset(), selection)
    assert streamed.meta.features == view.meta.features
    assert streamed.meta.raw_observation == view.meta.raw_observation
    assert streamed.meta.stats.keys() == view.meta.stats.keys()
    for key, stats in view.meta.stats.items():
        for name, value in stats.items():
            np.testing.assert_array_equal(streamed.meta.stats[key][name], value, err_msg=f"{key} {name}")
    assert (streamed.num_frames, streamed.num_episodes) == (EPISODES * FRAMES, EPISODES)


def test_files_of_unselected_cameras_are_not_needed(dataset_root, stream, tmp_path):
    root = shutil.copytree(dataset_root, tmp_path / "wrist_only")
    for key in (SIDE, DEPTH):
        shutil.rmtree(root / "videos" / key)
    items = list(stream(Selection(("wrist",)), root))
    assert sorted(indices(items)) == EVERY_FRAME
    assert {key for item in items for key in item if key.startswith("observation.")} == {
        "observation.state",
        WRIST,
    }


@pytest.mark.parametrize("workers", [0, 2, 4])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_each_frame_once_a_pass_whatever_the_workers(rolled_root, stream, rows_only, workers):
    loader = torch.utils.data.DataLoader(stream(root=rolled_root), batch_size=7, num_workers=workers)
    passes = [[int(index) for batch in loader for index in batch["index"]] for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == EVERY_FRAME
    assert EVERY_FRAME != passes[0] != passes[1], "mixed, and in each pass anew"


def test_workers_that_stay_mix_anew(stream, rows_only):
    loader = torch.utils.data.DataLoader(stream(), batch_size=7, num_workers=1, persistent_workers=True)
    passes = [[int(index) for batch in loader for index in batch["index"]] for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == EVERY_FRAME
    assert passes[0] != passes[1]


def test_few_rows_wait_when_told_so(stream, rows_only):
    streamed = stream()
    streamed._waiting_rows = 4
    seen = indices(streamed)
    assert sorted(seen) == EVERY_FRAME
    episodes = [index // FRAMES for index in seen]
    assert set(episodes[: FRAMES - 4]) == {episodes[0]}, "four rows cannot reach beyond the next episode"


def test_same_seed_same_order(stream, rows_only):
    assert indices(stream()) == indices(stream())
    assert indices(stream()) != indices(stream(seed=1))


def test_last_frames_are_left_out_but_seen_in_windows(stream):
    items = list(
        stream(Selection(()), drop_n_last_frames=3, delta_timestamps={"action": [0.0, 1 / FPS, 2 / FPS]})
    )
    assert sorted({int(item["frame_index"]) for item in items}) == list(range(FRAMES - 3))
    assert not any(item["action_is_pad"].any() for item in items)


def test_only_the_wanted_episodes(stream, rows_only):
    streamed = stream(episodes=[2, 0])
    assert sorted(indices(streamed)) == [*range(FRAMES), *range(2 * FRAMES, 3 * FRAMES)]
    assert (streamed.num_frames, streamed.num_episodes) == (2 * FRAMES, 2)
    with pytest.raises(UserError, match="dataset.episodes: 7 not in the dataset; it has 3"):
        stream(episodes=[1, 7])


def test_split_holds_out_the_last_episodes_in_order(stream, rows_only):
    train, held = split_stream(stream(drop_n_last_frames=2), 0.3)
    assert (train.episodes, held.episodes) == ([0, 1], [2])
    assert indices(held) == indices(held) == list(range(2 * FRAMES, 3 * FRAMES))
    assert len(indices(train)) == 2 * (FRAMES - 2)
    with pytest.raises(UserError, match="eval_split 0.9 leaves none of 3 episodes to train on"):
        split_stream(stream(), 0.9)


def test_image_transforms_are_applied_to_colour_in_training_only(stream):
    streamed = stream(image_transforms=torch.zeros_like)
    item, held = next(iter(streamed.of_episodes([1]))), next(iter(streamed.in_order()))
    assert item[WRIST].max() == 0 and item[DEPTH].max() > 0.2
    assert held[WRIST].max() > 0


def test_survives_pickling_to_a_worker(stream):
    again = pickle.loads(pickle.dumps(stream()))
    assert isinstance(again, SelectedStream)
    assert next(iter(again.in_order()))[WRIST].shape == (3, 32, 48)


def test_windows_reach_as_far_as_they_are_long(tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset

    vector = {"dtype": "float32", "shape": (1,), "names": ["a"]}
    features = dict.fromkeys(("observation.state", "observation.force", "action"), vector)
    recorded = LeRobotDataset.create("test/long", FPS, features, root=tmp_path / "long")
    for frame in range(250):  # LeRobot's own streaming looks 99 frames back
        recorded.add_frame({key: np.full(1, frame, np.float32) for key in features} | {"task": "press"})
    recorded.save_episode()
    recorded.finalize()
    dataset = StreamingLeRobotDataset("test/long", root=tmp_path / "long")
    streamed = select_streaming(dataset, Selection(force=ForceSelection("token", 200)))
    items = list(streamed.in_order())
    assert items[249]["observation.force"].flatten().tolist() == list(range(50, 250))
    assert items[9]["observation.force"].flatten().tolist() == [0] * 190 + list(range(10))
    assert items[9]["observation.force_is_pad"].sum() == 190


def test_missing_rows_are_named(rolled_root, stream, tmp_path):
    import pyarrow.parquet as pq

    root = shutil.copytree(rolled_root, tmp_path / "cut")
    path = sorted(root.glob("data/*/*.parquet"))[1]
    pq.write_table(pq.read_table(path).slice(0, 15), path)
    with pytest.raises(
        UserError, match="episode 1 has 15 rows, meta/episodes says 20; the dataset is damaged"
    ):
        list(stream(Selection(()), root))


def test_streams_from_a_url(dataset_root, stream, tmp_path, monkeypatch):
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset

    # A directory of this machine behind a URL, as the hub's are; the table and the videos are of one revision.
    dataset = StreamingLeRobotDataset("test/all", root=dataset_root, return_uint8=True)
    dataset.streaming_from_local = False
    (tmp_path / f"all@{dataset.revision}").symlink_to(dataset_root)
    monkeypatch.setattr(LeRobotDatasetMetadata, "url_root", f"file://{tmp_path}/all")
    streamed = select_streaming(dataset, Selection(("wrist",)), "pyav")
    assert streamed.reader.root == f"file://{tmp_path}/all@{dataset.revision}"
    assert indices(streamed.in_order()) == EVERY_FRAME
    with pytest.raises(UserError, match=f"{DEPTH}: LeRobot decodes depth video from local files only"):
        select_streaming(dataset, ALL, "pyav")


def test_texts_reach_the_other_processes_as_tensors(stream, monkeypatch):
    from accelerate.utils import concatenate

    monkeypatch.setenv("WORLD_SIZE", "2")
    streamed = stream(Selection((), language_tip=True)).in_order()
    batches = list(torch.utils.data.DataLoader(streamed, batch_size=EPISODES * FRAMES // 2))
    batch = concatenate(batches)  # what accelerate's first process does
    step = ModalityStep(streamed.meta.selection, streamed.meta.raw_observation)
    texts = step(
        {
            "observation": {key: value for key, value in batch.items() if key.startswith("observation.")},
            "complementary_data": {"task": batch["task"]},
        }
    )["complementary_data"]["task"]
    assert texts == ["press"] * FRAMES + ["press Tip: until it clicks"] * (2 * FRAMES)


@pytest.mark.parametrize("text", ["", "press", "drücke, bis es klickt", "押す"])
def test_a_packed_text_comes_back(text):
    packed = torch.utils.data.default_collate([pack(text), pack("other")])
    assert packed.shape == (2, TEXT_BYTES)
    assert unpack(packed) == [text, "other"]
    assert unpack(["press"]) == ["press"] and unpack(None) is None


def test_a_text_that_is_too_long_to_pack_says_so():
    with pytest.raises(UserError, match="has 600 bytes; streaming in several processes takes texts of up to"):
        pack("x" * 600)


@pytest.fixture(scope="module")
def image_root(tmp_path_factory):
    """Two short episodes whose pictures are in the table, depth in millimetres."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = ["height", "width", "channels"]
    features = {
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
        SIDE: {"dtype": "image", "shape": (HEIGHT, WIDTH, 3), "names": names},
        DEPTH: {
            "dtype": "image",
            "shape": (HEIGHT, WIDTH, 1),
            "names": names,
            "info": {"is_depth_map": True, "depth_unit": "mm"},
        },
        "action": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
    }
    root = tmp_path_factory.mktemp("data") / "images"
    dataset = LeRobotDataset.create("test/images", FPS, features, root=root, use_videos=False)
    for episode in range(2):
        for frame in range(4):
            dataset.add_frame(
                {
                    "observation.state": np.full(2, frame, np.float32),
                    SIDE: np.full((HEIGHT, WIDTH, 3), 20 * frame, np.uint8),
                    DEPTH: np.full((HEIGHT, WIDTH, 1), 300 + 100 * episode + frame, np.uint16),
                    "action": np.zeros(2, np.float32),
                    "task": "press",
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return root


def test_pictures_in_the_table_stream_too(image_root):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset

    selection = Selection(depth=DepthSelection(), resize=(32, 48))
    windows = {SIDE: [-1 / FPS, 0.0], DEPTH: [-1 / FPS, 0.0]}
    dataset = StreamingLeRobotDataset("test/images", root=image_root, delta_timestamps=windows)
    on_disk = LeRobotDataset("test/images", root=image_root, delta_timestamps=windows)
    items = list(select_streaming(dataset, selection))
    assert_same_items(items, select_dataset(on_disk, selection))
    assert {round(float(item[DEPTH].median()), 3) for item in items} > {0.301, 0.402}
