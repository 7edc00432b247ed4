"""A telemetry file of three seconds with everything in it: chunks, a starved half second, a refusal, an outage."""

import json
from pathlib import Path

FPS = 15
CHUNKS = 4


def events() -> list[dict]:
    lines = [
        {"event": "start", "time_s": 0.0, "episode": 0, "fps": FPS, "merge": "rtc", "chunk_size": 20,
         "action_names": ["shoulder_pan.pos"]},
    ]  # fmt: skip
    for i in range(45):
        starved = 30 <= i < 38
        lines.append(
            {
                "event": "tick",
                "time_s": i / FPS,
                "timestep": i,
                "queue": 0 if starved else 12 - i % 10,
                "starved": starved,
            }
        )
    for i in range(CHUNKS):
        at = 0.1 + 0.5 * i
        lines.append({"event": "request", "time_s": at - 0.1, "timestep": 7 * i, "forecast": 3})
        lines.append(
            {
                "event": "chunk",
                "time_s": at,
                "timestep": 7 * i,
                "arrived": 7 * i + 2 + i,
                "delay": 2 + i,
                "forecast": 3,
                "trimmed": 2 + i,
                "actions": 20,
                "jump": 0.5 * i,
                "round_trip_s": 0.08 + 0.01 * i,
                "queue_s": 0.001,
                "preprocess_s": 0.004,
                "infer_s": 0.05,
                "postprocess_s": 0.002,
                "codec": "raw",
                "sent_bytes": 900_000,
            }
        )
    lines += [
        {"event": "refused", "time_s": 1.7, "text": "joint 'gripper.pos' of <action 3> is not finite."},
        {"event": "fault", "time_s": 2.0, "kind": "timeout", "text": "no answer within 0.5 s & counting."},
        {"event": "resumed", "time_s": 2.5, "after_s": 0.53},
        {"event": "news_of_a_later_version", "time_s": 2.6, "text": {"nested": [1, 2]}},
        {"event": "end", "time_s": 3.0, "ticks": 45, "starved": 8, "chunks": 4, "refused": 1, "faults": 1},
    ]
    return lines


def write(path: Path, lines: list[dict] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in (events() if lines is None else lines)))
    return path
