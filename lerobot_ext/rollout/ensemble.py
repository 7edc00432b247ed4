"""ACT's temporal ensembling in numpy: an action is the weighted mean of what all chunks so far say for its timestep.

Algorithm 2 of https://huggingface.co/papers/2304.13705, with the weights of LeRobot's `ACTTemporalEnsembler`:
exp(-coeff * i), where i = 0 is the oldest chunk. What a mean is made of is one count a row, and a chunk may have any
length: nothing is laid out for the steps of an episode. How chunks come, and when, is not decided here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The coefficient of the original work.
ACT_COEFF = 0.01


def newest_share(coeff: float, votes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share that one more chunk has in the mean: w_n / (w_0 + … + w_n), with w_i = exp(-coeff * i).

    Args:
        coeff: 0: all chunks alike; above, the older weigh more; below, the newer.
        votes: (n,) the chunks that each row is the mean of by now.

    Returns:
        (n,) in 0 to 1; 1 for a row without votes.
    """
    votes = np.asarray(votes, np.float64)
    if coeff == 0:
        return 1 / (votes + 1)
    # The sum is a geometric series; of its two forms each is free of overflow for one sign.
    share = np.expm1(-abs(coeff)) / np.expm1(-abs(coeff) * (votes + 1))
    return share * np.exp(-coeff * votes) if coeff > 0 else share


class TemporalEnsemble:
    """The classic use: one chunk is made at each step, from that step's observation, and one action comes out.

    Args:
        coeff: `temporal_ensemble_coeff`: 0: all chunks alike; above, the older weigh more; below, the newer.
    """

    def __init__(self, coeff: float) -> None:
        self.coeff = float(coeff)
        self.reset()

    def reset(self) -> None:
        """A new episode: forget the chunks."""
        self._means: NDArray[np.float64] | None = None  # row 0 is for the next step
        self._votes = np.empty(0, np.int64)

    def add(self, chunk: NDArray[np.floating]) -> NDArray[np.float32]:
        """Take in the chunk of this step and hand out this step's action.

        Args:
            chunk: (n, dim), row 0 for this step; n need not be the same each time.

        Returns:
            (dim,) float32, the chunk's units.

        Raises:
            ValueError: The chunk is empty, or not as wide as those before.
        """
        chunk = np.asarray(chunk, np.float64)
        if chunk.ndim != 2 or not len(chunk):
            raise ValueError(f"a chunk has shape {chunk.shape}, expected (n, dim) with n of 1 or more.")
        means = np.empty((0, chunk.shape[1])) if self._means is None else self._means
        if means.shape[1] != chunk.shape[1]:
            raise ValueError(
                f"a chunk has {chunk.shape[1]} entries an action, those before {means.shape[1]}."
            )
        means = ensembled(self.coeff, means, self._votes, chunk)
        self._means, self._votes = means[1:], one_more(self._votes, len(chunk))[1:]
        return means[0].astype(np.float32)


def ensembled(
    coeff: float, means: NDArray[np.floating], votes: NDArray[np.int64], chunk: NDArray[np.floating]
) -> NDArray[np.floating]:
    """One more chunk in the means; row 0 of both is for the same timestep.

    Args:
        coeff: As `TemporalEnsemble`'s.
        means: (m, dim).
        votes: (m,) the chunks that each of them is the mean of.
        chunk: (n, dim).

    Returns:
        (max(m, n), dim), in the dtype of `means`.
    """
    both = min(len(means), len(chunk))
    share = newest_share(coeff, votes[:both])[:, None]
    mixed = means[:both] + share * (chunk[:both] - means[:both])
    return np.concatenate([mixed, means[both:], chunk[both:]], dtype=means.dtype, casting="same_kind")


def one_more(votes: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """The votes after a chunk of so many rows."""
    both = min(len(votes), rows)
    return np.concatenate([votes[:both] + 1, votes[both:], np.ones(rows - both, np.int64)])
