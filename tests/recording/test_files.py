"""A file is as it was or as it should be; Parquet files grow without their rows being written again."""

import json
import os

import killed
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_ext.recording import files, tables
from lerobot_ext.recording.files import Staging


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "meta" / "info.json"
    files.replace_json(path, {"a": 1, "ä": [2]})
    assert json.loads(path.read_text()) == {"a": 1, "ä": [2]} and "ä" in path.read_text()
    files.replace_bytes(path, b"two")
    assert path.read_bytes() == b"two" and os.listdir(tmp_path / "meta") == ["info.json"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temp:
        temp.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_temporary_names_look_like_nothing_that_lerobot_reads(tmp_path):
    for name in ("file-000.parquet", "file-000.mp4", "info.json"):
        temp = files.temp_beside(tmp_path / "chunk-000" / name)
        temp.touch()
        assert temp.name.startswith(".") and temp.suffix not in (".parquet", ".mp4", ".json")
    assert len(files.temp_files(tmp_path)) == 3 and list(tmp_path.glob("*/*.parquet")) == []


def test_staged_files_take_their_places_in_order_or_not_at_all(tmp_path):
    staging = Staging()
    staging.write(tmp_path / "b" / "one", b"1")
    (tmp_path / "source").write_bytes(b"2")
    staging.move(tmp_path / "source", tmp_path / "a" / "two")
    assert not (tmp_path / "b" / "one").exists()
    staging.abort()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

    for step, expected in ((1, set()), (2, {"one"}), (3, {"one", "two"})):

        def write(step=step):
            staging = Staging()
            staging.write(tmp_path / "one", b"1")
            staging.write(tmp_path / "two", b"2")
            killed.die_at(step)
            staging.commit()
            os.kill(os.getpid(), 9)

        assert not killed.run(write)
        assert {
            path.name for path in tmp_path.iterdir() if not path.name.startswith(".") and path.is_file()
        } == expected
        for path in tmp_path.iterdir():
            files.remove(path)


def test_a_line_is_appended_and_one_that_was_cut_off_spoils_no_other(tmp_path):
    path = tmp_path / "meta" / "lines.jsonl"
    files.append_line(path, "one")
    files.append_line(path, "two\n")
    with open(path, "a") as file:
        file.write("cut o")
    files.append_line(path, "three")
    assert path.read_text() == "one\ntwo\ncut o\nthree\n"


columns = st.lists(st.integers(-5, 5), min_size=1, max_size=20)


@given(groups=st.lists(columns, min_size=2, max_size=6))
@settings(max_examples=30, deadline=None)
def test_appended_row_groups_are_the_rows_one_after_the_other(tmp_path_factory, groups):
    folder = tmp_path_factory.mktemp("groups")
    made = [
        pa.table({"n": group, "text": [str(n) for n in group], "list": [[float(n)] * 3 for n in group]})
        for group in groups
    ]
    path = folder / "0.parquet"
    tables.write_table(made[0], path)
    for number, table in enumerate(made[1:], start=1):
        new = folder / f"{number}.parquet"
        tables.append_row_group(path, table, new)
        path = new
    found = pq.ParquetFile(path)
    assert found.num_row_groups == len(groups)
    assert found.read().equals(pa.concat_tables(made))
    assert pq.read_table(path, filters=[("n", ">", 0)]).num_rows == sum(
        n > 0 for group in groups for n in group
    )
    half = sum(map(len, groups)) // 2
    tables.keep_rows(path, half, folder / "half.parquet")
    assert pq.read_table(folder / "half.parquet").equals(pa.concat_tables(made).slice(0, half))


def test_other_columns_are_not_appended(tmp_path):
    tables.write_table(pa.table({"a": [1]}), tmp_path / "a")
    with pytest.raises(ValueError, match="other columns"):
        tables.append_row_group(tmp_path / "a", pa.table({"b": [1]}), tmp_path / "b")
    (tmp_path / "torn").write_bytes((tmp_path / "a").read_bytes()[:-1])
    with pytest.raises(ValueError, match="no Parquet footer"), open(tmp_path / "torn", "rb") as file:
        tables.footer_start(file)
    assert tables.append_episode(pa.table({"a": [1]}), pa.table({"b": [1]})) is None
    assert tables.append_episode(pa.table({"a": [1.5]}), pa.table({"a": [1]})).column("a").to_pylist() == [
        1.5,
        1.0,
    ]
    assert tables.append_episode(pa.table({"a": [1]}), pa.table({"a": ["x"]})) is None
