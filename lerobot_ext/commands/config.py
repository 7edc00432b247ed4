"""Config files as the commands read them: a YAML, overridden by `--key=value`, checked key by key.

LeRobot's parser (draccus) does the decoding; here is only what it does not do: name the nearest key when one is
misspelt, whatever its depth, before anything is loaded or connected.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import sys
import tempfile
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import draccus
import yaml

from lerobot_ext.errors import UserError


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        UserError: If the file is not there, is not YAML, or does not hold a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"config file {path} is not there (working directory: {Path.cwd()}).")
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"config file {path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"config file {path} holds {type(data).__name__}, expected keys and values.")
    return data


@contextmanager
def as_file(data: dict[str, Any]) -> Iterator[str]:
    """A temporary YAML file holding `data`, for LeRobot's parsers, which read files."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(data, file, sort_keys=False)
        file.flush()
        yield file.name


def config_path_of(argv: list[str]) -> str | None:
    """The value of `--config_path` in `argv`, or None."""
    return dict(options(argv)).get("config_path")


def options(argv: list[str]) -> list[tuple[str, str]]:
    """Split `--key=value` and `--key value` words into pairs; a bare `--flag` has the value `true`.

    Raises:
        UserError: For a word that belongs to no option.
    """
    pairs: list[tuple[str, str]] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"'{word}' is not an option; options look like --key=value.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        pairs.append((key, value))
    return pairs


def merge_options(data: dict[str, Any], argv: list[str]) -> dict[str, Any]:
    """`data` with the options of `argv` laid over it, `--a.b=1` as `{a: {b: 1}}`; `data` is not changed."""
    merged = json.loads(json.dumps(data, default=str))
    for key, value in options(argv):
        if key == "config_path":
            continue
        *parents, last = key.split(".")
        node = merged
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        try:
            node[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            node[last] = value
    return merged


def check_keys(config_class: type, data: dict[str, Any], source: str = "the command line") -> None:
    """Refuse keys that `config_class` does not have, naming the nearest one that it has.

    Args:
        config_class: A dataclass as LeRobot's parser takes it, its fields possibly draccus choice registries.
        data: The merged config (see `merge_options`).
        source: What to call the place of a wrong key in the message.

    Raises:
        UserError: For the first key, or the first `type`, that does not exist.
    """
    _check(config_class, data, (), source)


def check_types(annotation: Any, value: Any, name: str) -> None:
    """Refuse a value that a key's annotation does not allow, in words; keys are left to `check_keys`.

    Args:
        annotation: `bool`, `int`, `float`, `str`, a list or tuple of them, one of these or None, or a dataclass of
            such fields; whatever else there may be is left to LeRobot's parser.
        value: As YAML gives it.
        name: The key's full name.

    Raises:
        UserError: Names the key, the value, and what is expected.
    """
    if dataclasses.is_dataclass(annotation) and isinstance(value, dict):
        hints = typing.get_type_hints(annotation)
        for key, inner in value.items():
            check_types(hints.get(key, Any), inner, f"{name}.{key}" if name else key)
    elif not _fits(annotation, value):
        raise UserError(f"{name} {json.dumps(value, default=str)}: expected {_in_words(annotation)}.")


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "words"}


def _fits(annotation: Any, value: Any) -> bool:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(each, value) for each in inner)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(inner[0], item) for item in value)
    if annotation is type(None):
        return value is None
    if annotation not in _WORDS:
        return not dataclasses.is_dataclass(annotation)
    allowed = (int, float) if annotation is float else annotation
    return isinstance(value, allowed) and isinstance(value, bool) == (annotation is bool)


def _in_words(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if each is type(None) else _in_words(each) for each in inner)
    if origin in (list, tuple):
        return f"a list of {_SEVERAL[inner[0]]}"
    if dataclasses.is_dataclass(annotation):
        return "keys under it: " + ", ".join(field.name for field in dataclasses.fields(annotation))
    return _WORDS.get(annotation, str(annotation))


def _check(annotation: Any, data: Any, path: tuple[str, ...], source: str) -> None:
    if not isinstance(data, dict):
        if dataclasses.is_dataclass(annotation) and path:
            raise UserError(f"{source}: {'.'.join(path)} {data!r}: expected keys under it, not a value.")
        return
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        structured = [a for a in typing.get_args(annotation) if dataclasses.is_dataclass(a)]
        if len(structured) == 1:
            _check(structured[0], data, path, source)
    elif origin is dict:
        for key, value in data.items():
            _check(typing.get_args(annotation)[1], value, (*path, str(key)), source)
    elif dataclasses.is_dataclass(annotation):
        known = _fields(annotation, data, path, source)
        for key, value in data.items():
            if key not in known:
                raise UserError(_unknown(".".join((*path, str(key))), path, known, source))
            _check(known[key], value, (*path, key), source)


def _unknown(name: str, path: tuple[str, ...], known: dict[str, Any], source: str) -> str:
    near = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    if near:
        return f"{source}: there is no key '{name}'; did you mean '{'.'.join((*path, near[0]))}'?"
    return f"{source}: there is no key '{name}'; there are: {', '.join(sorted(known))}."


def _fields(cls: type, data: dict[str, Any], path: tuple[str, ...], source: str) -> dict[str, Any]:
    """Keys that may stand under a value of type `cls`, with their annotations."""
    classes = [cls]
    extra: dict[str, Any] = {}
    if issubclass(cls, draccus.ChoiceRegistry):
        choices = cls.get_known_choices()
        extra = {"type": str, "path": str}
        kind = data.get("type") or _checkpoint_type(data.get("path"))
        if kind is not None and kind not in choices:
            near = difflib.get_close_matches(str(kind), choices, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(sorted(choices))}."
            raise UserError(f"{source}: {'.'.join(path)}.type '{kind}' does not exist; {hint}")
        # Without a type (a policy named by a hub id, say) any subclass may be meant.
        classes = [choices[kind]] if kind is not None else list(choices.values())
    known = dict(extra)
    for each in classes:
        hints = typing.get_type_hints(each)
        known |= {f.name: hints.get(f.name, Any) for f in dataclasses.fields(each) if f.init}
    return known


def _checkpoint_type(path: Any) -> str | None:
    """The policy type written in a local checkpoint, or None."""
    config = Path(str(path)) / "config.json"
    if path is None or not config.is_file():
        return None
    try:
        return json.loads(config.read_text()).get("type")
    except (OSError, ValueError):
        return None


def shorten_torchcodec() -> None:
    """Make one line of LeRobot's 90 about a torchcodec that finds no FFmpeg; PyAV, which it falls back to, is fine."""

    def shorten(record: logging.LogRecord) -> bool:
        if "torchcodec" in record.msg:
            record.msg, record.levelno, record.levelname = "video: PyAV (torchcodec is unusable)", 20, "INFO"
        return True

    logging.getLogger("lerobot.utils.import_utils").addFilter(shorten)


@contextmanager
def command_line(program: str, words: list[str]) -> Iterator[None]:
    """Show LeRobot's parser these words as the command line, and leave nothing of them to whatever comes after.

    It reads `sys.argv`, and keeps the `policy.path` of a YAML in the module: a config that is made later in the same
    process, with a policy of its own, would load that checkpoint instead.
    """
    from lerobot.configs import parser

    kept = parser._config_path_args, parser._config_yaml_overrides
    before = sys.argv
    sys.argv = [f"lerobot-ext {program}", *words]
    for each in kept:
        each.clear()
    try:
        yield
    finally:
        sys.argv = before
        for each in kept:
            each.clear()
