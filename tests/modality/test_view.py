import pickle

import numpy as np
import pytest
import torch
from small_dataset import EPISODES, FORCE_NAMES, FPS, FRAMES, HEIGHT, JOINTS, WIDTH, depth_frame

from lerobot_ext.errors import UserError
from lerobot_ext.modality import DepthSelection, ForceSelection, ModalityStep, Selection
from lerobot_ext.modality.plan import make_plan
from lerobot_ext.modality.view import select_dataset

SIDE, DEPTH, WRIST = (f"observation.images.{name}" for name in ("side", "side_depth", "wrist"))
ALL = Selection(None, DepthSelection(), ForceSelection(), True, (32, 48))
WINDOWS = {
    "action": [i / FPS for i in range(5)],
    "observation.state": [-1 / FPS, 0.0],
    "observation.force": [-1 / FPS, 0.0],
    WRIST: [-1 / FPS, 0.0],
    DEPTH: [-1 / FPS, 0.0],
}


@pytest.fixture
def decoded(monkeypatch):
    """Names of the streams that the decoder was called for, in order."""
    from lerobot_ext.modality import decoding

    calls = []
    original = decoding.read_frames

    def counting(video_path, *args, **kwargs):
        calls.append(video_path.parents[1].name)
        return original(video_path, *args, **kwargs)

    monkeypatch.setattr(decoding, "read_frames", counting)
    return calls


@pytest.mark.parametrize(
    ("selection", "streams"),
    [
        (Selection(), {SIDE, WRIST}),
        (Selection(("wrist",)), {WRIST}),
        (Selection(("wrist",), DepthSelection()), {WRIST, DEPTH}),
        (Selection((), None, ForceSelection()), set()),
    ],
)
@pytest.mark.parametrize("cache_gb", [None, 1.0])
def test_only_selected_streams_are_decoded_and_returned(open_dataset, decoded, selection, streams, cache_gb):
    item = select_dataset(open_dataset(), selection, cache_gb)[25]
    assert set(decoded) == streams
    images = {key for key in item if key.startswith("observation.images.")}
    assert images == streams
    assert ("observation.force" in item) == (selection.force is not None)
    assert "language_tip" not in item and "observation.language_tip" not in item


def test_cache_decodes_once(open_dataset, decoded):
    view = select_dataset(open_dataset(), Selection(("wrist",)), 1.0)
    before = len(decoded)
    _ = [view[i] for i in range(len(view))]
    assert len(decoded) == before


def test_metadata_is_what_the_network_sees(open_dataset):
    dataset = open_dataset()
    view = select_dataset(dataset, ALL)
    features = view.meta.features
    assert features["observation.state"]["names"] == [*JOINTS, *FORCE_NAMES]
    assert features["observation.state"]["shape"] == (12,)
    assert "observation.force" not in features and "language_tip" not in features
    assert features[DEPTH]["shape"] == features[WRIST]["shape"] == (32, 48, 3)
    assert view.meta.depth_keys == []
    assert set(view.meta.camera_keys) == {SIDE, DEPTH, WRIST}
    assert set(view.meta.stats) >= {"observation.state", "action", *view.meta.camera_keys}
    assert dataset.meta.depth_keys == [DEPTH], "the dataset itself is not changed"
    assert (view.num_frames, view.num_episodes, len(view)) == (EPISODES * FRAMES, EPISODES, EPISODES * FRAMES)


def test_statistics_of_the_fused_state_are_those_of_its_parts(open_dataset):
    dataset = open_dataset()
    stats = select_dataset(dataset, ALL).meta.stats["observation.state"]
    for name in ("mean", "std", "min", "max", "q01"):
        parts = [dataset.meta.stats[f"observation.{part}"][name] for part in ("state", "force")]
        np.testing.assert_array_equal(stats[name], np.concatenate(parts))


@pytest.mark.parametrize("unit", ["mm", "m"])
def test_depth_statistics_follow_the_gray_value(open_dataset, unit):
    stats = select_dataset(open_dataset(depth_output_unit=unit), ALL).meta.stats[DEPTH]
    assert stats["mean"].shape == (3, 1, 1)
    np.testing.assert_allclose(stats["max"].ravel(), 0.05 + 0.95 * (0.9 - 0.1) / 1.4, rtol=1e-4)


def test_network_sees_what_was_recorded(open_dataset):
    view = select_dataset(open_dataset(), Selection(None, DepthSelection(), ForceSelection()))
    step = ModalityStep(view.meta.selection, view.meta.raw_observation)
    batch = torch.utils.data.default_collate([view[FRAMES + 3]])
    seen = step({"observation": {k: v for k, v in batch.items() if k.startswith("observation.")}})[
        "observation"
    ]
    millimetres = depth_frame(np.random.default_rng(0), 1, 3)
    frame = {**{k: v for k, v in batch.items() if k.startswith("observation.")}}
    frame[DEPTH] = torch.from_numpy(millimetres).permute(2, 0, 1)[None]
    at_robot = step({"observation": frame})["observation"]
    assert seen[DEPTH].shape == (1, 3, HEIGHT, WIDTH)
    assert (seen[DEPTH] - at_robot[DEPTH]).abs().max() < 1e-3
    assert torch.equal(seen[DEPTH] == 0, at_robot[DEPTH] == 0), "the hole is a hole on both sides"


@pytest.mark.parametrize("windows", [None, WINDOWS, {key: [0.0] for key in WINDOWS}])
def test_cached_items_equal_decoded_ones(open_dataset, windows):
    dataset = open_dataset(delta_timestamps=windows, episodes=[0, 2])
    plain, cached = select_dataset(dataset, ALL), select_dataset(dataset, ALL, 1.0)
    step = ModalityStep(ALL, plain.meta.raw_observation)
    for index in (0, 1, FRAMES - 1, FRAMES, 2 * FRAMES - 1):
        a, b = plain[index], cached[index]
        assert a.keys() == b.keys()
        for key, value in a.items():
            if not isinstance(value, torch.Tensor):
                assert value == b[key], key
            elif key == DEPTH:
                seen = [step._convert(DEPTH, depth) for depth in (value, b[key])]
                torch.testing.assert_close(*seen, atol=1e-4, rtol=0)
            else:
                assert value.dtype == b[key].dtype, key
                torch.testing.assert_close(value, b[key], atol=0, rtol=0, msg=key)


def test_image_transforms_are_applied_to_colour_only(open_dataset):
    for cache_gb in (None, 1.0):
        view = select_dataset(open_dataset(), ALL, cache_gb)
        before = view[0]
        view.set_image_transforms(torch.zeros_like)
        after = view[0]
        assert after[WRIST].max() == 0 and torch.equal(after[DEPTH], before[DEPTH])


def test_survives_pickling_to_a_worker(open_dataset):
    view = select_dataset(open_dataset(), ALL)
    again = pickle.loads(pickle.dumps(view))
    assert torch.equal(again[3][WRIST], view[3][WRIST])
    assert again.meta.selection == ALL


def test_cache_that_is_too_large_says_how_much_it_needs(open_dataset):
    with pytest.raises(
        UserError, match="needs 0.00 GB, modality.cache_max_gb allows 1e-06; .*modality.resize"
    ):
        select_dataset(open_dataset(), ALL, 1e-6)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(("wirst",)), "no RGB camera 'wirst'; the dataset has: side, wrist; did you mean 'wrist'"),
        (Selection(depth=DepthSelection(("wrist",))), "no depth stream 'wrist'; the dataset has: side_depth"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(open_dataset, selection, message):
    with pytest.raises(UserError, match=message):
        select_dataset(open_dataset(), selection)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(depth=DepthSelection()), "depth is selected, but the dataset has no depth stream"),
        (Selection(force=ForceSelection()), "force is selected, but the dataset has no observation.force"),
        (Selection(language_tip=True), "tip is selected, but the dataset has no column 'language_tip'"),
    ],
)
def test_what_was_not_recorded_cannot_be_selected(open_dataset, selection, message):
    features = {
        k: v for k, v in open_dataset().features.items() if k in ("observation.state", WRIST, "action")
    }
    with pytest.raises(UserError, match=f"{message}.*it has: .*{WRIST}"):
        make_plan(selection, features)


@pytest.mark.parametrize("windows", [None, {"observation.force": [-1 / FPS, 0.0]}])
def test_a_vector_of_one_number_stays_a_vector(tmp_path, windows):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    vector = {"dtype": "float32", "shape": (1,), "names": ["n"]}
    features = {"observation.state": vector, "observation.force": vector, "action": vector}
    made = LeRobotDataset.create("test/one", FPS, features, root=tmp_path / "one")
    for number in range(3):
        made.add_frame({key: np.array([number], np.float32) for key in features} | {"task": "press"})
    made.save_episode()
    made.finalize()
    dataset = LeRobotDataset("test/one", root=tmp_path / "one", delta_timestamps=windows)
    view = select_dataset(dataset, Selection(force=ForceSelection()))
    force = view[2]["observation.force"]
    assert force.tolist() == ([[1.0], [2.0]] if windows else [2.0])
    assert view.reader.__class__.__base__.get_item(view.reader, 2)["observation.force"].equal(force)
    if not windows:
        step = ModalityStep(view.meta.selection, view.meta.raw_observation)
        batch = torch.utils.data.default_collate([view[2], view[1]])
        seen = step({"observation": {key: batch[key] for key in ("observation.state", "observation.force")}})
        assert seen["observation"]["observation.state"].tolist() == [[2.0, 2.0], [1.0, 1.0]]
