"""Seeds: a chunk asked for with a seed has the same noise alone and in a batch, and leaves other chunks' noise alone.

LeRobot's policies draw the noise of a whole batch from torch's global generator. What one of them needs so that each
sample can have its own seed is found out by trying it, not from a list of names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from lerobot_ext.rollout.seeds import seeded

Predict = Callable[..., Tensor]

# Differences of float arithmetic, against which noise stands out.
_SAME = 1e-5


class NoiseSource:
    """How a policy's noise is drawn.

    Attributes:
        kind: `none`: it uses no noise. `argument`: it takes `noise=`, drawn for each sample by its own seed. `global`:
            only torch's generator can be seeded, so that a chunk with a seed is inferred alone.
        shape: Of one sample's noise with its batch dimension, for `argument`.
    """

    def __init__(self, policy: Any, device: torch.device) -> None:
        self._model = getattr(policy, "model", None)
        self._device = device
        self.kind: Literal["none", "argument", "global"] = "global"
        self.shape: tuple[int, ...] = ()

    @property
    def batches(self) -> bool:
        """Whether chunks with seeds may be inferred together."""
        return self.kind != "global"

    def probe(self, predict: Predict, batch: Mapping[str, Any]) -> None:
        """Find out the kind.

        Args:
            predict: `predict(batch, **arguments)` of the policy.
            batch: One preprocessed sample.
        """
        self.kind, self.shape = "global", ()
        shapes: list[tuple[int, ...]] = []
        with self._recorded(shapes), seeded(1, self._device):
            before = self._state()
            first = predict(dict(batch))
            drew = self._state() != before
        with seeded(2, self._device):
            second = predict(dict(batch))
        if not drew and _same(first, second):
            self.kind = "none"
        elif len(shapes) == 1 and shapes[0][:1] == (1,):
            self.shape = shapes[0]
            self.kind = "argument" if self._takes_noise(predict, batch, first) else "global"

    def draw(self, seeds: Sequence[int | None], always: bool = False) -> dict[str, Tensor]:
        """The arguments that give each sample of a batch its own noise.

        Args:
            seeds: Of the samples.
            always: Draw it also if no sample has a seed: a compiled policy is then compiled once, and not twice.
        """
        if self.kind != "argument" or not (always or any(seed is not None for seed in seeds)):
            return {}
        return {"noise": torch.cat([self._one(seed) for seed in seeds])}

    def _one(self, seed: int | None) -> Tensor:
        if seed is None:
            return self._model.sample_noise(self.shape, self._device)
        with seeded(seed, self._device):
            return self._model.sample_noise(self.shape, self._device)

    def _takes_noise(self, predict: Predict, batch: Mapping[str, Any], expected: Tensor) -> bool:
        noise = self._one(1)
        before = self._state()
        try:
            found = predict(dict(batch), noise=noise)
        except TypeError:
            return False
        return self._state() == before and _same(found, expected)

    @contextmanager
    def _recorded(self, shapes: list[tuple[int, ...]]) -> Iterator[None]:
        """Note what noise the model draws inside."""
        draw = getattr(self._model, "sample_noise", None)
        if draw is None:
            yield
            return

        def recorder(shape: Sequence[int], device: Any) -> Tensor:
            shapes.append(tuple(shape))
            return draw(shape, device)

        vars(self._model)["sample_noise"] = recorder
        try:
            yield
        finally:
            del vars(self._model)["sample_noise"]

    def _state(self) -> bytes:
        """Of the generators that a policy may draw from."""
        state = torch.get_rng_state()
        if self._device.type == "cuda":
            state = torch.cat([state, torch.cuda.get_rng_state(self._device)])
        return state.numpy().tobytes()


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, rtol=_SAME, atol=_SAME)
