"""A policy server with the product's real wire that starts in a second, in the place of `lerobot-ext serve`.

It takes the same words, says the same lines and ends as that does; its policy swings the first joint. What else it
shall do, the file in the environment variable SMALL_SERVER says: `slow` never gets ready, `fail` ends with an error,
`deaf` does not listen to SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "faults"))

from stand_in import Swing

from simplify_work.server.parent import end_with
from simplify_work.server.server import PolicyServer
from simplify_work.wire import listen
from simplify_work.wire.address import parse_address


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--end_with", type=int, required=True)
    args, words = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    address = parse_address(args.address)
    end_with(args.end_with, address)
    mood = os.environ.get("SMALL_SERVER", "")
    say(f"loading {' '.join(words)} …")
    logging.warning("a warning from the policy")
    if mood == "slow":
        time.sleep(600)
    if mood == "fail":
        say("error: the checkpoint is incomplete: model.safetensors is missing")
        return 2
    server = PolicyServer(Swing(), listen.bind(address))
    stop = threading.Event()
    if mood == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server.start()
    say(f"ready: swing at {args.address}")
    stop.wait()
    server.stop()
    say("stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
