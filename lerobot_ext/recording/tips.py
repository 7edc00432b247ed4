"""Language tips: which tip an episode gets while it is recorded, and which one each recorded episode has.

A tip says how a task is to be done ("press until it clicks") and is the same in all frames of an episode. How it
reaches a policy is `modality`'s and `rollout`'s business; changing recorded ones is `set_tips`'.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lerobot_ext.errors import UserError
from lerobot_ext.features import TIP
from lerobot_ext.recording import episodes
from lerobot_ext.recording.episodes import EpisodeListener, add_listener

if TYPE_CHECKING:
    from lerobot.robots import Robot

logger = logging.getLogger(__name__)

COLUMN = {"dtype": "string", "shape": (1,), "names": None}
"""The column's entry in a dataset's features."""

MOST = 9  # tips to choose from: one digit each

EXPECTED = (
    "expected a text (every episode), a list of up to nine texts to choose from, or a mapping of episode numbers to "
    "texts, each for that episode and those after it, such as {0: gently, 10: until it clicks}"
)
NO_COLUMN = (
    "{root} has no column '{column}': it was begun without language tips, and a dataset's columns stay as they were "
    "begun. Add the column with `lerobot-ext tip {root} --all --set=''`, or leave dataset.language_tip out."
)


@dataclass(frozen=True)
class TipPlan:
    """Which tips a session gives.

    Attributes:
        choices: To choose from by a digit key; a single one is every episode's.
        by_episode: Instead of choices: the tip of an episode of the dataset and of those after it, by its index.
    """

    choices: tuple[str, ...] = ()
    by_episode: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, option: str = "dataset.language_tip") -> TipPlan:
        """From what a YAML says.

        Raises:
            UserError: It is nothing of what is expected.
        """
        if isinstance(value, Mapping) and value:
            numbers = {_number(key, option): _text(tip, option) for key, tip in value.items()}
            return cls(by_episode=dict(sorted(numbers.items())))
        if isinstance(value, list | tuple) and 0 < len(value) <= MOST:
            return cls(choices=tuple(_text(tip, option) for tip in value))
        return cls(choices=(_text(value, option),))

    @property
    def texts(self) -> tuple[str, ...]:
        """Every tip that may be given."""
        return self.choices or tuple(self.by_episode.values())

    def at(self, episode: int, chosen: int = 0) -> str:
        """The tip of an episode of the dataset, "" for none; `chosen` is an index into `choices`."""
        if self.choices:
            return self.choices[chosen]
        begun = [index for index in self.by_episode if index <= episode]
        return self.by_episode[max(begun)] if begun else ""


class Tips:
    """The tips of the session that is going on.

    Attributes:
        plan: None: nobody asked for tips; a dataset that has the column gets empty ones.
    """

    def __init__(self) -> None:
        """No tips are asked for."""
        self.plan: TipPlan | None = None
        self._chosen = 0
        self._recording = False

    @contextmanager
    def session(self, plan: TipPlan | None) -> Iterator[None]:
        """Give the tips of `plan` for the length of a `with` block."""
        before = self.plan, self._chosen
        self.plan, self._chosen = plan, 0
        try:
            yield
        finally:
            self.plan, self._chosen = before

    def at(self, episode: int) -> str:
        """The tip of an episode that is recorded now, "" for none."""
        return "" if self.plan is None else self.plan.at(episode, self._chosen)

    @property
    def to_choose(self) -> bool:
        """Whether there is a choice between several."""
        return self.plan is not None and len(self.plan.choices) > 1

    def key(self, name: str) -> None:
        """A key was pressed: a digit chooses the tip of the episode that is recorded, between two that of the next."""
        if not self.to_choose or not (name.isascii() and name.isdigit()):
            return
        if not 1 <= int(name) <= len(self.plan.choices):
            logger.warning("there is no language tip %s; %s", name, self._offer())
            return
        self._chosen = int(name) - 1
        whose = "this" if self._recording else "the next"
        logger.info("%s episode's language tip: %s", whose, shown(self.plan.choices[self._chosen]))

    def start(self, robot: Robot) -> None:
        """An episode starts: say which tip it has."""
        dataset = episodes.current().dataset
        if self.plan is None or dataset is None:
            return
        self._recording = True
        index = dataset.num_episodes
        keys = f" ({self._offer()})" if self.to_choose else ""
        logger.info("language tip of episode %d: %s%s", index, shown(self.at(index)), keys)

    def end(self, robot: Robot) -> None:
        """An episode has ended: say what may be chosen for the next one."""
        if self._recording and self.to_choose:
            tip = shown(self.plan.choices[self._chosen])
            logger.info("language tip of the next episode: %s (%s)", tip, self._offer())
        self._recording = False

    def _offer(self) -> str:
        return "keys: " + ", ".join(f"{i} {shown(tip)}" for i, tip in enumerate(self.plan.choices, 1))


tips = Tips()


def install() -> None:
    """Say from now on which tip an episode has, where tips are asked for."""
    # Before sensors are tared: the operator may have to read it while nothing moves.
    add_listener(EpisodeListener(name="tips", on_start=tips.start, on_end=tips.end, order=5))


def with_column(features: Mapping[str, Any]) -> dict[str, Any]:
    """The features of a dataset that is begun now, with the column if tips are asked for."""
    features = dict(features)
    if tips.plan is not None:
        features.setdefault(TIP, dict(COLUMN))
    return features


def check_column(features: Mapping[str, Any], root: str | Path) -> None:
    """Refuse tips for a dataset that is gone on with and cannot hold them.

    Raises:
        UserError: Says how to add the column.
    """
    if tips.plan is not None and any(tips.plan.texts) and TIP not in features:
        raise UserError(NO_COLUMN.format(root=root, column=TIP))


def fill(frame: dict[str, Any], features: Mapping[str, Any], episode: int) -> dict[str, Any]:
    """A frame with its episode's tip, where the dataset has the column and the frame does not; else the frame itself."""
    return frame if TIP not in features or TIP in frame else {**frame, TIP: tips.at(episode)}


def read(root: str | Path) -> dict[int, str]:
    """The tip of each recorded episode, by its index; `{}` for a dataset without the column.

    An episode whose rows have none (its file is older than the column) has "".
    """
    import pyarrow.parquet as pq

    found: dict[int, str] = {}
    for path in sorted((Path(root) / "data").glob("*/*.parquet")):
        with pq.ParquetFile(path) as file:
            if TIP not in file.schema_arrow.names:
                continue
            table = file.read(columns=["episode_index", TIP])
        for index, tip in zip(table["episode_index"].to_pylist(), table[TIP].to_pylist(), strict=True):
            found.setdefault(index, tip or "")
    return dict(sorted(found.items()))


def shown(tip: str) -> str:
    """The tip as a message shows it."""
    return f"'{tip}'" if tip else "none"


def clean(text: str) -> str:
    """A tip as it is recorded: one line, without spaces around it."""
    return " ".join(text.split())


def _text(value: Any, option: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{option} is {value!r}; {EXPECTED}.")
    return clean(value)


def _number(value: Any, option: str) -> int:
    # JSON, which options pass through, has no numbers for keys.
    if isinstance(value, bool) or not str(value).isdecimal():
        raise UserError(f"{option} names the episode {value!r}; {EXPECTED}.")
    return int(value)
