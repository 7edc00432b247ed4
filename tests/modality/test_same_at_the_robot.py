"""What the network sees in training is what it sees at the robot: same frame in, same tensors out.

Training: recorded by LeRobot, read through the dataset view, collated, and put through the checkpoint's preprocessor.
At the robot: the arrays as the devices give them, here or through the wire and the server's session.
"""

import numpy as np
import pytest
import torch
from checkpoints import make_act
from hard_frames import (
    DEPTH_KEY,
    FORCE,
    FRAMES,
    HIGHEST_MM,
    INTRINSICS,
    LOWEST_MM,
    METRES_KEY,
    RGB_KEY,
    STATE,
    TASK,
    TIP,
    record,
    robot_frames,
    smooth_depth,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.feature_utils import dataset_to_policy_features
from torch.utils.data import default_collate

from lerobot_ext.modality import DepthSelection, ForceSelection, ModalityStep, Selection
from lerobot_ext.modality.depth import DepthRange, Pinhole, clean, depth_image, resize_depth, to_metres
from lerobot_ext.modality.view import select_dataset
from simplify_work.server.pictures import pictures_used
from simplify_work.server.protocol import Request
from simplify_work.server.runner import PolicyRunner
from simplify_work.server.wanted import wanted_from_robot
from simplify_work.wire.codec import pack, unpack
from simplify_work.wire.messages import Infer
from simplify_work.wire.pictures import PictureEncoder

REPRESENTATIONS = ("gray", "turbo", "normals")
SIZES = (None, (12, 16), (17, 23), (30, 40))
NEAR_M, FAR_M = 0.2, 1.0
LIMITS = DepthRange(LOWEST_MM / 1000, HIGHEST_MM / 1000)
CAMERA = Pinhole.of(INTRINSICS)
CODE_M = (HIGHEST_MM - LOWEST_MM) / 1000 / 4095  # a step of the video's 12 bits


def everything(representation="gray", size=None) -> Selection:
    shown = DepthSelection(None, NEAR_M, FAR_M, representation)
    return Selection(None, shown, ForceSelection(), True, size)


@pytest.fixture(scope="module")
def frames():
    return robot_frames()


@pytest.fixture(scope="module")
def exact(frames, tmp_path_factory):
    """The frames recorded as pictures: depth as uint16 and float32, nothing lost."""
    root = tmp_path_factory.mktemp("exact") / "dataset"
    record(root, frames, videos=False)
    return LeRobotDataset("test/hard", root=root)


def in_training(view, rows, preprocessor=None) -> dict:
    """The batch of these rows, as LeRobot's train loop makes it."""
    batch = default_collate([view[row] for row in rows])
    return (preprocessor or pipeline(view))(batch)


def at_the_robot(view, frame: dict, preprocessor=None) -> dict:
    """The batch of one frame, as LeRobot's rollout makes it."""
    batch = prepare_observation_for_inference(dict(frame), torch.device("cpu"), TASK)
    return (preprocessor or pipeline(view))(batch | {"observation.language_tip": TIP})


def pipeline(view) -> PolicyProcessorPipeline:
    """The step as a checkpoint brings it: from its JSON."""
    step = ModalityStep(view.meta.selection.to_dict(), view.meta.raw_observation)
    return PolicyProcessorPipeline(steps=[step], name="policy_preprocessor")


def assert_same(trained: dict, row: int, seen: dict) -> None:
    keys = {key for key in trained if key.startswith("observation.")}
    assert keys == {key for key in seen if key.startswith("observation.")}
    for key in keys:
        assert torch.equal(trained[key][row], seen[key][0]), key
    task = seen["task"] if isinstance(seen["task"], str) else seen["task"][0]
    assert trained["task"][row] == task == f"{TASK} Tip: {TIP}"


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_a_recorded_frame_is_the_robots_frame(exact, frames, representation, size):
    view = select_dataset(exact, everything(representation, size))
    trained = in_training(view, range(FRAMES))
    for row, frame in enumerate(frames):
        assert_same(trained, row, at_the_robot(view, frame))
        # Whichever way the devices give depth: integer millimetres or floating metres.
        other = {
            DEPTH_KEY: (frame[DEPTH_KEY] / np.float32(1000)).astype(np.float32),
            METRES_KEY: (frame[METRES_KEY] * 1000).round().astype(np.uint16),
        }
        assert_same(trained, row, at_the_robot(view, frame | other))
    assert trained["observation.state"].shape == (FRAMES, STATE + FORCE)
    assert trained[DEPTH_KEY].shape == (FRAMES, 3, *(size or frames[0][DEPTH_KEY].shape[:2]))


def as_seen(depth, representation, size):
    return depth_image(depth, DepthSelection(None, NEAR_M, FAR_M, representation), LIMITS, size, CAMERA)


MAPS = hnp.arrays(
    np.uint16,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=14).map(lambda shape: (1, *shape)),
    elements=st.sampled_from((0, 99, 100, 101, 200, 1000, 1100, 1101, 65_535)) | st.integers(0, 65_535),
)


@settings(deadline=None, max_examples=50)
@given(
    depth=MAPS,
    representation=st.sampled_from(REPRESENTATIONS),
    size=st.none() | st.tuples(st.integers(2, 20), st.integers(2, 20)),
    leading=st.sampled_from([(), (1,), (3,), (2, 3)]),
)
def test_millimetres_and_metres_of_any_map_are_the_same_picture(depth, representation, size, leading):
    metres = depth.astype(np.float32) / np.float32(1000)
    expected = as_seen(depth, representation, size)
    repeated = np.broadcast_to(depth, (*leading, *depth.shape)).copy()
    found = {
        "metres": as_seen(metres, representation, size),
        "a tensor": as_seen(torch.from_numpy(metres), representation, size),
        "signed": as_seen(depth.astype(np.int32), representation, size),
        "cleaned and resized by the view": as_seen(
            resize_depth(clean(to_metres(depth), LIMITS), size), representation, None
        ),
    }
    for name, image in found.items():
        assert torch.equal(image, expected), name
    several = as_seen(repeated, representation, size)
    assert several.shape == (*leading, *expected.shape)
    assert torch.equal(several, expected.expand_as(several))
    assert expected.dtype == torch.float32 and expected.min() >= 0 and expected.max() <= 1


@settings(deadline=None, max_examples=50)
@given(
    depth=MAPS,
    nothing=st.sampled_from([0.0, np.nan, np.inf, -np.inf, -1.0, 0.05, 0.1]),
    representation=st.sampled_from(REPRESENTATIONS),
    size=st.sampled_from([None, (5, 7)]),
)
def test_there_is_one_picture_of_no_measurement(depth, nothing, representation, size):
    metres = depth.astype(np.float32) / np.float32(1000)
    metres[depth <= LOWEST_MM] = nothing
    assert torch.equal(as_seen(metres, representation, size), as_seen(depth, representation, size))


@settings(deadline=None, max_examples=50)
@given(depth=MAPS, representation=st.sampled_from(["gray", "turbo"]), size=st.sampled_from([None, (5, 7)]))
def test_a_camera_that_multiplies_by_its_own_unit_is_within_rounding(depth, representation, size):
    by_unit = depth.astype(np.float32) * np.float32(0.001)
    torch.testing.assert_close(
        as_seen(by_unit, representation, size), as_seen(depth, representation, size), rtol=0, atol=1e-4
    )


@pytest.fixture(scope="module")
def lossy(tmp_path_factory):
    """Frames of smooth surfaces, and the view of them through LeRobot's videos."""
    root = tmp_path_factory.mktemp("lossy") / "dataset"
    frames = robot_frames(smooth_depth)
    record(root, frames, videos=True)
    return frames, LeRobotDataset("test/hard", root=root, video_backend="pyav")


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("size", [None, (12, 16)])
def test_depth_that_went_through_the_video_is_within_its_step(lossy, representation, size):
    frames, dataset = lossy
    view = select_dataset(dataset, everything(representation, size))
    trained = in_training(view, range(FRAMES))
    # Half a step by rounding, the rest for float arithmetic; of the colour map its steepest slope.
    error = 0.51 * CODE_M / (FAR_M - NEAR_M)
    table = as_seen(torch.linspace(NEAR_M, FAR_M, 256).reshape(1, 1, 256), "turbo", None)
    slope = {"gray": 1.0, "turbo": 255 * table.diff(dim=-1).abs().max().item(), "normals": None}[
        representation
    ]
    for row, frame in enumerate(frames):
        seen = at_the_robot(view, frame)
        for key in (DEPTH_KEY, METRES_KEY):
            found, expected = trained[key][row], seen[key][0]
            assert torch.equal(found.amax(0) > 0, expected.amax(0) > 0), "the same pixels are measured"
            difference = (found - expected).abs()
            # A normal leans by the depth's error over the width of two pixels: little where the surface is smooth.
            assert difference.max() <= (error * slope if slope else 0.05)
        assert torch.equal(trained["observation.state"][row], seen["observation.state"][0])


@pytest.mark.parametrize("size", [None, (12, 16)])
@pytest.mark.parametrize("cached", [False, True])
def test_colour_of_a_video_is_the_same_bytes_at_the_robot(lossy, size, cached):
    """The decoded picture as the robot's uint8 (H, W, 3): equal; resized as uint8 in the view, within 1/255."""
    _, dataset = lossy
    selection = Selection(None, resize=size)
    view = select_dataset(dataset, selection, cache_gb=1.0) if cached else select_dataset(dataset, selection)
    trained = in_training(view, range(FRAMES))[RGB_KEY]
    if trained.dtype == torch.uint8:
        trained = trained.to(torch.float32) / 255
    for row in range(FRAMES):
        picture = (dataset[row][RGB_KEY] * 255).round().to(torch.uint8).movedim(0, -1).numpy()
        frame = {"observation.state": np.zeros(STATE, np.float32), RGB_KEY: picture}
        frame |= {"observation.force": np.zeros(FORCE, np.float32)}
        seen = at_the_robot(view, frame)[RGB_KEY][0]
        torch.testing.assert_close(trained[row], seen, rtol=0, atol=1 / 255 if cached and size else 0)


@pytest.fixture(scope="module")
def served(exact, tmp_path_factory):
    """A checkpoint of ACT with the selection in its preprocessor, and a server's runner of it."""
    view = select_dataset(exact, everything("turbo", (12, 16)))
    features = dataset_to_policy_features(view.meta.features)
    inputs = {key: feature for key, feature in features.items() if feature.type is not FeatureType.ACTION}
    path = make_act(tmp_path_factory.mktemp("act") / "checkpoint", inputs=inputs)
    preprocessor, _ = make_pre_post_processors(
        PreTrainedConfig.from_pretrained(path), pretrained_path=str(path)
    )
    preprocessor.steps = [pipeline(view).steps[0], *preprocessor.steps]
    preprocessor.save_pretrained(path)
    return view, path, PolicyRunner(str(path), device="cpu")


@pytest.mark.parametrize("codec", ["raw", "lossless", "jpeg"])
def test_the_server_sees_what_training_saw(served, frames, codec):
    view, path, runner = served
    preprocessor, _ = make_pre_post_processors(
        PreTrainedConfig.from_pretrained(path), pretrained_path=str(path)
    )
    trained = in_training(view, range(FRAMES), preprocessor)
    session = runner.open_session()
    for row, frame in enumerate(frames):
        encoder = None if codec == "raw" else PictureEncoder(codec)
        _, arrays = unpack(pack(Infer(request=1), frame, encoder))
        request = Request(session, arrays, f"{TASK} Tip: {TIP}")
        (seen,) = session.preprocess(request)
        if codec == "jpeg":  # of colour only; depth, force and state keep every bit
            assert (seen.pop(RGB_KEY) - trained[RGB_KEY][row]).abs().mean() < 1
            seen[RGB_KEY] = trained[RGB_KEY][row : row + 1]
        assert_same(trained, row, seen)


@pytest.mark.parametrize(("size", "names"), [(None, {RGB_KEY}), ((12, 16), set())])
def test_a_picture_that_the_selection_resizes_is_not_made_smaller_on_the_way(exact, size, names):
    """It would be resized twice; depth is never made smaller."""
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    view = select_dataset(exact, everything(size=size))
    inputs = wanted_from_robot({}, pipeline(view))
    config = SmolVLAConfig(resize_imgs_with_padding=(16, 16))
    uses = pictures_used(config, pipeline(view), inputs, lambda frame: at_the_robot(view, frame))
    assert {use.name for use in uses} == names
