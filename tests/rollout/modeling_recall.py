"""A policy with a perfect memory: it knows each recorded state, and gives what was done from there on."""

from collections import deque

import torch
from configuration_recall import RecallConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    policy_action_to_transition,
    transition_to_policy_action,
)


class RecallPolicy(PreTrainedPolicy):
    """Its weights are the recording: `states`, (rows, n), and `actions`, (rows, dim)."""

    config_class = RecallConfig
    name = "recall"

    def __init__(self, config, **kwargs):
        super().__init__(config)
        self.config = config
        for name, features in (
            ("states", config.robot_state_feature),
            ("actions", config.action_feature),
        ):
            self.register_parameter(
                name, torch.nn.Parameter(torch.zeros(config.rows, features.shape[0]), requires_grad=False)
            )
        self.reset()

    def get_optim_params(self):
        return self.parameters()

    def reset(self):
        self._queue = deque()

    def forward(self, batch, **kwargs):
        raise NotImplementedError

    def predict_action_chunk(self, batch, **kwargs):
        row = (self.states - batch["observation.state"]).abs().sum(dim=1).argmin()
        rows = row + self.config.shift + torch.arange(self.config.chunk_size)
        return self.actions[rows.clamp(max=len(self.actions) - 1)][None]

    def select_action(self, batch, **kwargs):
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch)[0, : self.config.n_action_steps])
        return self._queue.popleft()[None]


def save(path, states, actions, features, **options):
    """A checkpoint, with processors that leave the numbers as they are."""
    config = RecallConfig(rows=len(states), device="cpu", push_to_hub=False, **features, **options)
    policy = RecallPolicy(config)
    policy.states.copy_(torch.as_tensor(states))
    policy.actions.copy_(torch.as_tensor(actions))
    policy.save_pretrained(path)
    steps = [RenameObservationsProcessorStep(), AddBatchDimensionProcessorStep(), DeviceProcessorStep("cpu")]
    PolicyProcessorPipeline(steps, name="policy_preprocessor").save_pretrained(path)
    PolicyProcessorPipeline(
        [DeviceProcessorStep("cpu")],
        name="policy_postprocessor",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    ).save_pretrained(path)
    return path
