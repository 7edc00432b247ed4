"""Several observations, one control step apart, handed to a policy as LeRobot's own loop would have.

Policies with queues of observations fill them in `select_action`, at every control step; a served policy sees none of
these steps. So its queues are filled anew for each chunk, and nothing of one robot's stays in them for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lerobot.policies.utils import populate_queues
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_IMAGES

from simplify_work.server.batching import Batch, stack_steps


class ObservationQueues:
    """The queues of a policy; many have none.

    Args:
        policy: A LeRobot policy.
    """

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._names = frozenset(getattr(policy, "_queues", None) or ()) - {ACTION}

    def __bool__(self) -> bool:
        """Whether `predict_action_chunk` takes its observations from queues."""
        return bool(self._names)

    def observe(self, steps: Sequence[Batch]) -> Batch:
        """What to give to `predict_action_chunk`, after the queues were filled.

        Args:
            steps: A batch for each of the policy's n_obs_steps, the oldest first.
        """
        config = self._policy.config
        if not self:
            return steps[-1] if len(steps) == 1 else stack_steps(steps, tuple(config.input_features))
        for name in self._names:
            self._policy._queues[name].clear()
        for step in steps:
            batch = {name: value for name, value in step.items() if name != ACTION}
            pictures = [batch[name] for name in config.image_features]
            if OBS_IMAGES in self._names:
                batch[OBS_IMAGES] = torch.stack(pictures, dim=-4)
            if OBS_IMAGE in self._names:
                batch[OBS_IMAGE] = pictures[0]
            populate_queues(self._policy._queues, batch, exclude_keys=[ACTION])
        return batch
