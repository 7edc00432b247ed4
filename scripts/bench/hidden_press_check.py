"""What the joints, the picture and the skin tell of contact in `hidden_press`: the proof that it is hidden.

The operator's goals are played again with the button and without it; whatever differs tells of contact. Not a
benchmark itself.
"""

from __future__ import annotations

import numpy as np
from common import print_table, progress
from hidden_press import PICTURE, HiddenPress, Replay, demonstrate, hidden_model, replay

from lerobot_ext.virtual.world import World

VISIBLE = 8  # of 255
HIGHER_M = 0.014  # with the button this much higher the operator's goals press it with up to 5.5 N


def check_hiding(episodes: int, seed: int) -> dict:
    """Play the operator's goals again with the button and without it: what do joints and pictures tell of it?

    Args:
        episodes: Presses of the operator.
        seed: Of their heights.

    Returns:
        One row for each kind of servo and place of the button.
    """
    rig = HiddenPress(seed)
    played = []
    try:
        for _ in progress(range(episodes), "pressing", "press"):
            for _ in demonstrate(rig):
                pass
            played.append((rig.goals, rig.task.world.block_height))
            rig.task.end_episode()
    finally:
        rig.close()
    cases = {
        "the lab's usual servos": (None, 0.0),
        "stiff, with gear friction": (hidden_model(), 0.0),
        f"the same, button {1000 * HIGHER_M:.0f} mm higher": (hidden_model(), HIGHER_M),
    }
    rows = []
    for name, (model, higher) in cases.items():
        pairs = [
            (replay(World(model), goals, height + higher), replay(World(model), goals, None))
            for goals, height in progress(played, f"checking {name}", "press")
        ]
        rows.append({"": name} | told(pairs))
    print_table(rows, "The operator's goals, played again with the button and without it (50 % is chance)")
    return {"told": rows}


def told(pairs: list[tuple[Replay, Replay]]) -> dict[str, float]:
    """What the frames in contact tell, each against the same frame without a button."""
    away = np.concatenate([np.abs(a.ticks - b.ticks)[a.touched].max(1) for a, b in pairs])
    # A motion far below a tick can turn one pixel on an edge: the renderer does not smooth edges.
    seen = [np.abs(a.pictures.astype(int) - b.pictures)[a.touched].max(-1) > VISIBLE for a, b in pairs]
    return {
        "contact, frames": len(away),
        "up to, N": max(a.normal_n.max() for a, _ in pairs),
        "joints read otherwise, %": 100 * float((away > 0).mean()),
        "by, ticks": int(away.max()),
        f"pixels otherwise, of {PICTURE * PICTURE}": max(int(other.sum((1, 2)).max()) for other in seen),
        "guessed from joints, %": 100 * probe([(a.ticks[a.touched], b.ticks[a.touched]) for a, b in pairs]),
        "from skin, %": 100 * probe([(a.force[a.touched], b.force[a.touched]) for a, b in pairs]),
    }


def probe(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Share of held-out rows that a quadratic least-squares classifier puts on the right side; 0.5 is a guess.

    Args:
        pairs: For each episode the rows of the two classes; every other episode is held out.
    """

    def rows(some: list) -> tuple[np.ndarray, np.ndarray]:
        x = np.concatenate([side for pair in some for side in pair]).astype(float)
        y = np.concatenate(
            [np.full(len(side), sign) for pair in some for sign, side in zip((1, -1), pair, strict=True)]
        )
        return x, y

    (x, y), (new, truth) = rows(pairs[::2]), rows(pairs[1::2])
    mean, spread = x.mean(0), x.std(0) + 1e-6

    def features(values: np.ndarray) -> np.ndarray:
        z = (values - mean) / spread
        crossed = np.einsum("ni,nj->nij", z, z)[:, *np.triu_indices(z.shape[1])]
        return np.hstack([np.ones((len(z), 1)), z, crossed])

    a = features(x)
    weights = np.linalg.solve(a.T @ a + 1e-3 * np.eye(a.shape[1]), a.T @ y)
    return float((np.sign(features(new) @ weights) == truth).mean())
