"""Names and shapes of what we add to LeRobot's features: force, observations that are vectors, the language tip.

Nothing here touches LeRobot; `compat` teaches LeRobot to accept these.
"""

from __future__ import annotations

from collections.abc import Iterable

FORCE = "force"
OBS_FORCE = "observation.force"
TIP = "language_tip"
"""Dataset column (string, one value an episode) that holds the language tip; "" where none was given."""


class VectorFeature(tuple):
    """The shape `(n,)` of a vector-valued observation, with a name for each of its n numbers.

    It is what `robot.observation_features` holds for such an observation. It is a tuple because LeRobot's
    rollout drops observations that are neither tuples nor joint positions.

    Attributes:
        names: One name for each number, all different.

    Example:
        >>> VectorFeature(["skin.m0_x", "skin.m0_y"])
        VectorFeature(['skin.m0_x', 'skin.m0_y'])
    """

    names: list[str]

    def __new__(cls, names: Iterable[str]) -> VectorFeature:
        """Make the feature of a vector whose numbers have these names."""
        names = [str(name) for name in names]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a vector feature needs at least one name and no name twice; got {names}.")
        feature = super().__new__(cls, (len(names),))
        feature.names = names
        return feature

    def __getnewargs__(self) -> tuple[list[str]]:
        """What copies and pickles call `__new__` with."""
        return (self.names,)

    def __repr__(self) -> str:
        return f"VectorFeature({self.names})"
