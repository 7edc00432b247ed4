"""Changes the language tips of recorded episodes, in place: the tables of frames are written anew, videos stay.

At whatever instant it ends, the dataset opens: all files are written before the first takes its place, and `info.json`,
which announces the column, is the first. (LeRobot reads a column that a table lacks as empty, and refuses one that is
not announced.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lerobot_ext.errors import UserError
from lerobot_ext.features import TIP
from lerobot_ext.recording import lock, tips
from lerobot_ext.recording.files import Staging, json_bytes

INFO = "meta/info.json"


def set_tips(root: str | Path, new: Mapping[int, str]) -> None:
    """Give recorded episodes their tips; the column is added if the dataset was begun without it.

    Args:
        root: Folder of a LeRobot dataset v3.0, ours or not, that nobody records to.
        new: The tip of each episode that shall have another one, "" for none; the others keep theirs.

    Raises:
        UserError: There is no such dataset, or no such episode.
        InUseError: Another process is recording to it.
        OSError: The folder cannot be written; nothing has changed.
    """
    root = Path(root)
    info = info_of(root)
    beyond = [index for index in new if not 0 <= index < info["total_episodes"]]
    if beyond:
        raise UserError(
            f"there is no episode {beyond[0]} in {root}; it has {info['total_episodes']}: 0 to "
            f"{info['total_episodes'] - 1}."
        )
    lock.take(root)
    staging = Staging()
    try:
        if TIP not in info["features"]:
            info["features"][TIP] = tips.COLUMN | {"shape": list(tips.COLUMN["shape"])}
            staging.write(root / INFO, json_bytes(info))
        schema = _schema_metadata(info["features"])
        for path in sorted((root / "data").glob("*/*.parquet")):
            with pq.ParquetFile(path) as file:
                if _changes(file, new):
                    _rewrite(file, new, schema, staging.new(path))
        staging.commit()
    finally:
        staging.abort()
        lock.release(root)


def info_of(root: Path) -> dict[str, Any]:
    """What `meta/info.json` says.

    Raises:
        UserError: There is no dataset, or one of another version.
    """
    try:
        info = json.loads((root / INFO).read_text(encoding="utf-8"))
        version, _ = info["codebase_version"], (info["features"], info["total_episodes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"'{root}' holds no LeRobot dataset ({INFO}: {type(error).__name__}); give the folder that holds meta/, "
            "data/ and videos/."
        ) from error
    if not str(version).lstrip("v").startswith("3."):
        raise UserError(
            f"'{root}' is a dataset of version {version}, expected v3.0; older datasets are converted with "
            "lerobot.scripts.convert_dataset_v21_to_v30."
        )
    return info


def _changes(file: pq.ParquetFile, new: Mapping[int, str]) -> bool:
    if TIP not in file.schema_arrow.names:
        return True
    table = file.read(columns=["episode_index", TIP])
    pairs = zip(table["episode_index"].to_pylist(), table[TIP].to_pylist(), strict=True)
    return any(tip is None or tip != new.get(index, tip) for index, tip in pairs)


def _rewrite(file: pq.ParquetFile, new: Mapping[int, str], metadata: dict[bytes, bytes], path: Path) -> None:
    """Write the file's rows to `path`, in its row groups, with other tips."""
    schema = file.schema_arrow
    if TIP not in schema.names:
        schema = schema.append(pa.field(TIP, pa.string()))
    schema = schema.with_metadata(metadata)
    with pq.ParquetWriter(path, schema, compression="snappy", use_dictionary=True) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            old = table[TIP].to_pylist() if TIP in table.column_names else [None] * len(table)
            rows = zip(table["episode_index"].to_pylist(), old, strict=True)
            column = pa.array([new.get(index, tip or "") for index, tip in rows], pa.string())
            columns = {name: table[name] for name in table.column_names} | {TIP: column}
            writer.write_table(pa.table([columns[name] for name in schema.names], schema=schema))


def _schema_metadata(features: Mapping[str, Any]) -> dict[bytes, bytes]:
    """What `datasets` keeps with a table, by which it knows pictures from bytes."""
    from lerobot.datasets.feature_utils import get_hf_features_from_features

    shaped = {key: {**feature, "shape": tuple(feature["shape"])} for key, feature in features.items()}
    return get_hf_features_from_features(shaped).arrow_schema.metadata
