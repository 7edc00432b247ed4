"""What a check of the doctor is, how a list of them is gone through, and how their findings are printed.

What is looked at is the business of `doctor_devices` (this machine's), `doctor_link` (from the robot to a server) and
`doctor_host` (at the server).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"
_STYLES = {OK: "green", WARNING: "yellow", FAILED: "bold red", SKIPPED: "dim"}


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        status: OK, WARNING or FAILED; SKIPPED if a check that it needs failed.
        found: What is there.
        advice: What to do; empty if there is nothing to do.
        figures: The numbers of it, for programs.
    """

    status: str
    found: str
    advice: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check[Patient]:
    """One thing to look at.

    Attributes:
        name: In the first column.
        look: Looks at it; may leave in its argument what later checks need. An exception is a failure.
        needs: Names of the checks without which this one has nothing to look at.
    """

    name: str
    look: Callable[[Patient], Finding]
    needs: tuple[str, ...] = ()


def failed(error: Exception) -> Finding:
    """An error's sentence, its remedy (what follows the last semicolon) apart."""
    found, semicolon, advice = " ".join(str(error).split()).rpartition("; ")
    return Finding(FAILED, found, advice) if semicolon else Finding(FAILED, advice or type(error).__name__)


def examine[Patient](checks: Sequence[Check[Patient]], patient: Patient) -> Iterator[tuple[str, Finding]]:
    """Go through `checks` and yield each one's name and finding as soon as it is known."""
    missing: set[str] = set()
    for check in checks:
        without = [name for name in check.needs if name in missing]
        if without:
            finding = Finding(SKIPPED, f"not looked at, because of '{without[0]}'")
        else:
            try:
                finding = check.look(patient)
            except Exception as error:
                finding = failed(error)
        if finding.status in (FAILED, SKIPPED):
            missing.add(check.name)
        yield check.name, finding


def report[Patient](
    checks: Sequence[Check[Patient]],
    patient: Patient,
    as_json: bool,
    more: Callable[[Patient], dict[str, Any]] | None = None,
) -> int:
    """Go through `checks` and print what they find, a line each, or all of it as one JSON object.

    Args:
        checks: In the order of the lines; their names are unique.
        patient: What they look at.
        as_json: Print one JSON object.
        more: What else that object holds.

    Returns:
        0 if none failed, else 1.
    """
    console = Console(highlight=False, soft_wrap=True)
    width = max(len(check.name) for check in checks)
    findings: dict[str, Finding] = {}
    waiting = console.status("looking …") if console.is_terminal and not as_json else nullcontext()
    with waiting:
        for name, finding in examine(checks, patient):
            findings[name] = finding
            if not as_json and finding.status != SKIPPED:
                console.print(line(name, finding, width))
    skipped = [name for name, finding in findings.items() if finding.status == SKIPPED]
    if skipped and not as_json:
        console.print(
            Text(f"not looked at, because of what failed: {', '.join(skipped)}", style=_STYLES[SKIPPED])
        )
    healthy = all(finding.status != FAILED for finding in findings.values())
    if as_json:
        listed = [{"check": name, **asdict(finding)} for name, finding in findings.items()]
        others = more(patient) if more else {}
        print(json.dumps({"ok": healthy, "checks": listed, **others}, indent=2))
    return 0 if healthy else 1


def line(name: str, finding: Finding, width: int) -> Text:
    """`warning  keys   what was found -> what to do`, in colour where there is colour."""
    text = Text(f"{finding.status:<8} ", style=_STYLES[finding.status])
    text.append(f"{name:<{width}}  ", style="default")
    text.append(finding.found, style="default")
    if finding.advice:
        text.append(f" -> {finding.advice}", style="default")
    return text
