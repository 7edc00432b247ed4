"""Configuration of a policy that knows a recording by heart; see `modeling_recall`."""

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig


@PreTrainedConfig.register_subclass("recall")
@dataclass
class RecallConfig(PreTrainedConfig):
    """`shift`: steps by which it is ahead of the recording."""

    rows: int = 1
    chunk_size: int = 10
    n_action_steps: int = 10
    shift: int = 0

    @property
    def observation_delta_indices(self):
        return None

    @property
    def action_delta_indices(self):
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self):
        return None

    def get_optimizer_preset(self):
        raise NotImplementedError

    def get_scheduler_preset(self):
        return None

    def validate_features(self):
        pass
