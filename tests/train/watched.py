"""`lerobot-ext train` with a witness: what each step trained on, and its loss, as one JSON line each.

As a script: `python watched.py JOURNAL [train's options …]`; every process writes its own journal, `JOURNAL.RANK`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def journal(path: Path) -> Iterator[None]:
    """Write the indices of each batch that is trained on, and what LeRobot logs of each step."""
    from lerobot.lerobot_types import TransitionKey

    from lerobot_ext.modality.step import ModalityStep

    step, factory = ModalityStep.__call__, logging.getLogRecordFactory()
    with open(path, "a", buffering=1) as file:

        def seen(self, transition):
            indices = transition[TransitionKey.COMPLEMENTARY_DATA]["index"].tolist()
            file.write(json.dumps({"indices": indices}) + "\n")
            return step(self, transition)

        def logged(name, level, where, line, message, *rest, **more):
            # LeRobot logs its tracker itself, which has the loss in full precision.
            if type(message).__name__ == "MetricsTracker":
                values = {"loss": message.loss.avg, "lr": message.lr.avg, "norm": message.grad_norm.avg}
                file.write(json.dumps({"step": message.steps} | values) + "\n")
            return factory(name, level, where, line, message, *rest, **more)

        ModalityStep.__call__ = seen
        logging.setLogRecordFactory(logged)
        try:
            yield
        finally:
            ModalityStep.__call__ = step
            logging.setLogRecordFactory(factory)


def read(path: Path) -> tuple[list[list[int]], dict[int, dict[str, float]]]:
    """Indices of each batch; loss, learning rate and gradient's norm by step."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    batches = [line["indices"] for line in lines if "indices" in line]
    return batches, {line.pop("step"): line for line in lines if "step" in line}


if __name__ == "__main__":
    with journal(Path(f"{sys.argv[1]}.{os.environ.get('RANK', '0')}")):
        from lerobot_ext.commands.main import main

        status = main(["train", *sys.argv[2:]])
    sys.exit(status)
