"""A batch for which the memory does not suffice is inferred one by one, with the memory that the attempt had taken."""

import weakref
from types import SimpleNamespace

import pytest
import torch

from simplify_work.server.runner import PolicyRunner


class Scarce(PolicyRunner):
    """A runner whose memory holds one sample; no checkpoint is loaded."""

    def __init__(self):
        self.alive_then = []
        self._taken = None

    def _predict_group(self, group):
        if len(group) > 1:
            activations = torch.zeros(4)
            self._taken = weakref.ref(activations)
            raise RuntimeError("out of memory")
        self.alive_then.append(self._taken() is not None)
        return torch.full((1, 2, 3), float(group[0].index))


@pytest.mark.parametrize("samples", [2, 3])
def test_a_failed_batchs_tensors_are_gone_before_its_samples_are_tried_alone(samples):
    runner = Scarce()
    session = SimpleNamespace(postprocess=lambda chunk: chunk[0].numpy())
    request = SimpleNamespace(session=session, model_actions=False)
    group = [SimpleNamespace(index=index, request=request) for index in range(samples)]
    found = dict(runner._infer_group(group, 0.0))
    assert [found[index].actions[0, 0] for index in range(samples)] == list(range(samples))
    assert runner.alive_then == [False] * samples
