"""Policy type `remote`: where the server is and how long to wait for it. Weights, sizes and features are its business."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig

CODECS = ("auto", "raw", "jpeg", "lossless")


@PreTrainedConfig.register_subclass("remote")
@dataclass
class RemoteConfig(PreTrainedConfig):
    """A policy that runs elsewhere.

    Attributes:
        address: Of a running `lerobot-ext serve`: `tcp://HOST:PORT`, `HOST:PORT` or `ipc://PATH`.
        timeout_s: Longest wait for one chunk.
        connect_timeout_s: Longest wait for the server to be there.
        n_action_steps: Actions of a chunk that are executed before the next is asked for; the checkpoint's if None.
            Above 1 it also switches off a checkpoint's temporal ensembling, which asks at every step.
        actions_per_chunk: Actions of a chunk that are kept; all if None.
        seed: Makes a run repeatable: the n-th chunk of every episode draws its noise from `seed + n`.
        rename_map: The robot's observation keys to the policy's.
        robot_type: What to tell the server about the robot; LeRobot's pipelines do not tell the policy.
        telemetry_path: A file that gets one JSON line a chunk, with its round trip and the server's durations.
        keys: This robot's folder of the keys that `lerobot-ext keys` made (`FOLDER/NAME`); the connection is then
            encrypted, and both sides prove who they are. None for a server without keys.
        codec: How pictures travel: `raw` (exact); `jpeg` (depth stays exact); `lossless`; or `auto`: whichever is the
            quickest over the link, as measured. On `ipc://` they always go through shared memory.
        jpeg_quality: 1 to 100.
        shrink: Make pictures as small as the policy will see them before they are sent, unless they travel raw.
        rtc_config: Not on the command line; LeRobot's rollout sets it with `--inference.type=rtc`.
        rtc_postprocessor: Not on the command line; scale and offset of the server's postprocessor, in RTC mode.
    """

    address: str = "tcp://127.0.0.1:5555"
    timeout_s: float = 5.0
    connect_timeout_s: float = 4.5
    n_action_steps: int | None = None
    actions_per_chunk: int | None = None
    seed: int | None = None
    rename_map: dict[str, str] = field(default_factory=dict)
    robot_type: str = ""
    telemetry_path: str | None = None
    keys: str | None = None
    codec: str = "auto"
    jpeg_quality: int = 90
    shrink: bool = True

    # Set on an instance while it is in use, and never saved: without annotations, so that these are no fields.
    rtc_config = None
    rtc_postprocessor = None

    # A policy without weights needs no accelerator; saying so spares LeRobot's warning that none was chosen.
    device: str | None = "cpu"
    push_to_hub: bool = False
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one of them cannot be.
        """
        super().__post_init__()
        for name in ("timeout_s", "connect_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"policy.{name} is {getattr(self, name)}, expected seconds above 0.")
        for name in ("n_action_steps", "actions_per_chunk"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"policy.{name} is {getattr(self, name)}, expected 1 or more, or null.")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"policy.seed is {self.seed}, expected 0 or more, or null.")
        if self.codec not in CODECS:
            raise ValueError(f"policy.codec is '{self.codec}', expected one of {', '.join(CODECS)}.")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"policy.jpeg_quality is {self.jpeg_quality}, expected 1 to 100.")

    @property
    def observation_delta_indices(self) -> None:
        """The server sees one observation a chunk."""
        return None

    @property
    def action_delta_indices(self) -> None:
        """Not trained here."""
        return None

    @property
    def reward_delta_indices(self) -> None:
        """Not trained here."""
        return None

    def get_optimizer_preset(self):
        """Refuse: there is nothing to train.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "policy type 'remote' cannot be trained, it has no weights; train the policy and serve its checkpoint."
        )

    def get_scheduler_preset(self) -> None:
        """Not trained here."""
        return None

    def validate_features(self) -> None:
        """The server's policy says what it wants when it is connected to."""
