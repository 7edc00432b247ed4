"""What the benchmarks share: arguments, figures of a sample, tables, and the JSON file with the machine it ran on.

Every benchmark is a script here that measures us and the peer in one run; `--quick` makes it short enough for a
laptop that is doing something else, and then its figures are a smoke test only. Nothing here measures anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "outputs" / "bench"

_PACKAGES = ("lerobot", "torch", "pyzmq", "msgspec", "numpy")

# Works from any directory, also where LeRobot is installed but this package is not.
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes; each adds its own.

    Args:
        description: The script's `__doc__`; its first paragraph is shown by `--help`.
    """
    made = argparse.ArgumentParser(description=description.strip().split("\n\n")[0])
    made.add_argument(
        "--quick", action="store_true", help="a short run that shows that it works; figures are rough"
    )
    made.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON (default %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of everything random (default %(default)s)")
    return made


def percentiles(seconds: Iterable[float], scale: float = 1e3) -> dict[str, float]:
    """Figures of a sample.

    Args:
        seconds: At least one measurement.
        scale: Multiplied with each; 1e3 gives milliseconds.

    Returns:
        `n`, `min`, `p50`, `p95`, `p99`, `max`, `mean`.

    Raises:
        ValueError: If there is no measurement.
    """
    sample = np.asarray(list(seconds), dtype=np.float64) * scale
    if not len(sample):
        raise ValueError("percentiles of no measurements: the benchmark measured nothing; see its log.")
    p50, p95, p99 = np.percentile(sample, (50, 95, 99))
    figures = {"min": sample.min(), "p50": p50, "p95": p95, "p99": p99, "max": sample.max()}
    return {"n": len(sample), **{name: float(value) for name, value in figures.items()}} | {
        "mean": float(sample.mean())
    }


def ratio(ours: float, peer: float) -> float:
    """How many times the peer's figure is ours; above 1 we are smaller."""
    return peer / ours if ours else float("inf")


def progress(items: Iterable[Any], what: str, unit: str) -> Iterable[Any]:
    """A bar over `items` on standard error, so that a saved table stays clean."""
    from tqdm import tqdm

    return tqdm(items, desc=what, unit=unit, leave=False)


def print_table(rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Print rows as aligned columns, in the order of the first row's keys; floats with three digits that matter."""
    if not rows:
        return
    columns = list(rows[0])
    lines = [columns] + [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    if title:
        print(f"\n{title}")
    for number, line in enumerate(lines):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        if number == 0:
            print("  ".join("-" * width for width in widths))
    sys.stdout.flush()


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, memory, GPU, versions, and how busy it was at this moment."""
    import psutil

    found = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1min": round(psutil.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }
    torch = sys.modules.get("torch")  # not loaded for its own sake: it takes seconds
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def machine_line(found: Mapping[str, Any] | None = None) -> str:
    """`machine()` on one line."""
    found = found or machine()
    parts = [
        found["processor"],
        f"{found['cores']} cores",
        f"{found['memory_gib']} GiB",
        f"load {found['load_1min']}",
    ]
    if "gpu" in found:
        parts.append(found["gpu"])
    parts += [f"{name} {number}" for name, number in found["versions"].items() if number]
    return ", ".join(parts)


def save(name: str, results: Any, arguments: argparse.Namespace | Mapping[str, Any] | None = None) -> Path:
    """Write `NAME.json` with the results, the arguments and the machine; prints where.

    Args:
        name: Of the benchmark.
        results: Anything that JSON can hold; numpy's numbers and arrays are turned into Python's.
        arguments: What the script was called with; its `output` is the folder.

    Returns:
        The file. A quick run is saved as `NAME.quick.json`, so that it never replaces a real one.
    """
    given = dict(arguments if isinstance(arguments, Mapping) else vars(arguments) if arguments else {})
    folder = Path(given.get("output") or RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    found = machine()
    path = folder / f"{name}{'.quick' if given.get('quick') else ''}.json"
    document = {
        "name": name,
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": found,
        "arguments": given,
        "results": results,
    }
    path.write_text(json.dumps(document, indent=1, default=_plain) + "\n")
    print(f"\n{machine_line(found)}")
    print(f"saved: {path}")
    return path


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3
        return f"{value:.{digits}f}"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
