"""Padding flags (`KEY_is_pad`) follow their feature: on disk, cached and streamed alike, before and after the step."""

import pytest
import torch
from small_dataset import FPS, FRAMES

from lerobot_ext.modality import DepthSelection, ForceSelection, ModalityStep, Selection
from lerobot_ext.modality.streaming import select_streaming
from lerobot_ext.modality.view import select_dataset

STATE, FORCE, ACTION = "observation.state", "observation.force", "action"
SIDE, DEPTH, WRIST = (f"observation.images.{name}" for name in ("side", "side_depth", "wrist"))
# Selection, the windows that its items have, and those that the network gets.
CASES = {
    "one camera": (Selection(("wrist",)), {STATE, WRIST}, {STATE, WRIST}),
    "excluded": (Selection(exclude=("*wrist",)), {STATE, SIDE}, {STATE, SIDE}),
    "all": (
        Selection(None, DepthSelection(), ForceSelection(), True),
        {STATE, FORCE, SIDE, WRIST, DEPTH},
        {STATE, SIDE, WRIST, DEPTH},
    ),
    "token": (Selection((), force=ForceSelection("token", 4)), {STATE, FORCE}, {STATE, FORCE}),
    "nothing to see": (Selection((), include=()), {STATE}, {STATE}),
}


@pytest.fixture
def views(open_dataset, dataset_root):
    """The dataset of a policy with two observation steps, as diffusion is, in three ways: item by number."""
    from lerobot.datasets.factory import resolve_delta_timestamps
    from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

    def make(selection):
        policy = DiffusionConfig(device="cpu", horizon=8, n_action_steps=4)
        windows = resolve_delta_timestamps(policy, open_dataset().meta)
        assert windows[WRIST] == [-1 / FPS, 0.0] and len(windows[ACTION]) == 8
        on_disk = open_dataset(delta_timestamps=windows)
        streamed = StreamingLeRobotDataset(
            "test/all", root=dataset_root, delta_timestamps=windows, return_uint8=True, episodes=[1]
        )
        items = list(select_streaming(streamed, selection, "pyav").in_order())
        return {
            "on disk": select_dataset(on_disk, selection),
            "cached": select_dataset(on_disk, selection, 1.0),
            "streamed": {FRAMES + frame: item for frame, item in enumerate(items)},
        }

    return make


@pytest.mark.parametrize("case", CASES)
def test_flags_follow_their_feature(views, case):
    from lerobot.processor.converters import batch_to_transition, transition_to_batch

    selection, windows, seen = CASES[case]
    ways = views(selection)
    step = ModalityStep(selection, ways["on disk"].meta.raw_observation)
    for way, view in ways.items():
        first, last = view[FRAMES], view[2 * FRAMES - 1]
        assert _padded(first) == windows | {ACTION}, way
        for key in windows:
            steps = len(first[f"{key}_is_pad"])
            assert first[key].shape[0] == steps == (4 if key == FORCE and case == "token" else 2), (way, key)
            assert first[f"{key}_is_pad"].tolist() == [True] * (steps - 1) + [False], (way, key)
            assert torch.equal(first[key][0], first[key][-1]), (way, key)
            assert not last[f"{key}_is_pad"].any(), (way, key)
        # Actions go from one step back to six ahead.
        assert first["action_is_pad"].tolist() == [True] + [False] * 7, way
        assert last["action_is_pad"].tolist() == [False] * 2 + [True] * 6, way

        batch = torch.utils.data.default_collate([first, last])
        assert _padded(transition_to_batch(step(batch_to_transition(batch)))) == seen | {ACTION}, way


def _padded(item: dict) -> set[str]:
    return {key.removesuffix("_is_pad") for key in item if key.endswith("_is_pad")}
