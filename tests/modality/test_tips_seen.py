"""Language tips from the dataset to the task that the policy is told: batches, workers, the cache."""

import pytest
from lerobot.processor import DataProcessorPipeline
from small_dataset import EPISODES, FRAMES
from torch.utils.data import DataLoader

from lerobot_ext.modality import ModalityStep, Selection
from lerobot_ext.modality.view import select_dataset

BATCH = 7  # some batches hold the frames of two episodes


@pytest.mark.parametrize("cache_gb", [None, 1.0])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_of_a_batch_is_told_its_own_episodes_tip(open_dataset, cache_gb, workers):
    view = select_dataset(open_dataset(), Selection((), language_tip=True), cache_gb, shared=workers > 0)
    step = ModalityStep(view.meta.selection, view.meta.raw_observation)
    pipeline = DataProcessorPipeline([step])
    tasks = []
    for batch in DataLoader(view, batch_size=BATCH, num_workers=workers):
        told = pipeline(batch)
        assert not any("tip" in key for key in told), "it is part of the task and nothing else"
        tasks += told["task"]
    assert tasks == ["press"] * FRAMES + ["press Tip: until it clicks"] * (EPISODES - 1) * FRAMES


@pytest.mark.parametrize("cache_gb", [None, 1.0])
def test_a_tip_that_is_not_selected_is_not_read(open_dataset, cache_gb):
    view = select_dataset(open_dataset(), Selection(()), cache_gb)
    batch = next(iter(DataLoader(view, batch_size=BATCH)))
    assert not any("tip" in key for key in batch)
    assert "language_tip" not in view.reader.hf_dataset.column_names
