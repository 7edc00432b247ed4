"""GR00T's own way to continue a chunk: which policies have it, and what they are given."""

from types import SimpleNamespace

import pytest
import torch

from lerobot_ext.rollout.native_rtc import continues_itself, continuing


def policy(name="groot", supports=True, **config):
    return SimpleNamespace(name=name, supports_rtc=lambda: supports, config=SimpleNamespace(**config))


def test_a_groot_of_absolute_actions_continues_itself():
    assert continues_itself(policy()) is True
    assert continues_itself(policy(use_relative_actions=False), SimpleNamespace(steps=[object()]))
    relative = SimpleNamespace(steps=[object(), SimpleNamespace(use_relative_action=True)])
    for other, postprocessor in (
        (policy(), relative),
        (policy(use_relative_actions=True), None),
        (policy(supports=False), None),
        (policy(name="pi0"), None),
        (object(), None),
    ):
        assert continues_itself(other, postprocessor) is False


@pytest.mark.parametrize(("rows", "delay", "given_delay"), [(10, 3, 3), (10, 7, 6), (2, 3, 2)])
def test_it_gets_the_rows_before_the_horizon(rows, delay, given_delay):
    left_over = torch.arange(rows * 2.0).reshape(rows, 2)
    rtc = SimpleNamespace(execution_horizon=6, inference_delay=delay)
    given = continuing(SimpleNamespace(left_over=left_over, rtc=rtc))
    assert torch.equal(given["prev_chunk_left_over"], left_over[:6])
    assert given["inference_delay"] == given_delay
