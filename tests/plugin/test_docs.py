"""The page about what is wrapped lists what is wrapped."""

from pathlib import Path

from lerobot_ext import compat


def test_the_docs_list_every_extension_with_its_reason():
    page = Path("docs/lerobot.md").read_text()
    for name, reason in compat.table():
        assert f"| `{name}` | {reason} |" in page
