"""Tables whose writer was killed at any byte: every complete row group comes back, and nothing else ever does."""

import struct

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lerobot_ext.recording import parquet_footer, thrift
from lerobot_ext.recording.parquet_footer import FooterError, rebuild

FEATURES = {
    "state": datasets.Sequence(length=6, feature=datasets.Value("float32")),
    "flags": datasets.Sequence(length=3, feature=datasets.Value("bool")),
    "done": datasets.Value("bool"),
    "depth": datasets.Array2D(shape=(2, 3), dtype="float32"),
    "tip": datasets.Value("string"),
    "picture": datasets.Image(),
    "double": datasets.Value("float64"),
}
INDEX = {"episode_index": datasets.Value("int64"), "index": datasets.Value("int64")}


def column(feature, count, rng):
    if isinstance(feature, datasets.Image):
        return [{"bytes": rng.bytes(int(rng.integers(1, 3000))), "path": None} for _ in range(count)]
    if isinstance(feature, datasets.Array2D):
        return rng.normal(size=(count, 2, 3)).astype(np.float32).tolist()
    if isinstance(feature, datasets.Value) and feature.dtype == "string":
        return [["", "until it clicks", "weiß nicht"][i] for i in rng.integers(0, 3, count)]
    size = (count, feature.length) if isinstance(feature, datasets.Sequence) else (count,)
    dtype = feature.feature.dtype if isinstance(feature, datasets.Sequence) else feature.dtype
    if dtype == "bool":
        return rng.integers(0, 2, size).astype(bool).tolist()
    return rng.normal(size=size).round(int(rng.integers(0, 8))).astype(dtype).tolist()


def write(path, names, lengths, seed):
    """A table as LeRobot's recorder writes it; returns each row group's table and where its bytes end."""
    features = datasets.Features({name: FEATURES[name] for name in names} | INDEX)
    rng = np.random.default_rng(seed)
    tables, ends = [], []
    with pq.ParquetWriter(path, features.arrow_schema, compression="snappy", use_dictionary=True) as writer:
        for episode, length in enumerate(lengths):
            data = {name: column(FEATURES[name], length, rng) for name in names}
            data |= {"episode_index": [episode] * length, "index": list(range(length))}
            table = datasets.Dataset.from_dict(data, features=features).with_format("arrow")[:]
            writer.write_table(table)
            tables.append(table)
            ends.append(path.stat().st_size)
    return features.arrow_schema, tables, ends


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    names=st.lists(st.sampled_from(sorted(FEATURES)), unique=True),
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_a_file_cut_anywhere_gives_every_complete_row_group_and_no_other(
    tmp_path, names, lengths, share, seed
):
    path, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    schema, tables, ends = write(path, names, lengths, seed)
    data = path.read_bytes()
    size = max(4, round(share * len(data)))
    path.write_bytes(data[:size])
    out.unlink(missing_ok=True)

    found = rebuild(path, schema, out)

    expected = [table for table, end in zip(tables, ends, strict=True) if end <= size]
    assert list(found.rows) == [table.num_rows for table in expected]
    assert out.exists() == bool(expected)
    if expected:
        back = pq.read_table(out)
        assert back.equals(pa.concat_tables(expected))
        assert back.schema.metadata == schema.metadata
        assert found.end == ends[len(expected) - 1]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(start=st.floats(0, 1), length=st.integers(1, 4000), zeros=st.booleans(), seed=st.integers(0, 2**16))
def test_bytes_that_never_reached_the_disk_cost_rows_but_no_exception(tmp_path, start, length, zeros, seed):
    """After a power failure a file has its length, with holes of zeros or old blocks."""
    path, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    schema, tables, ends = write(path, ["state", "done", "tip"], [20, 30, 40], 0)
    data = bytearray(path.read_bytes()[: ends[-1]])
    first = max(4, int(start * len(data)))
    hole = min(length, len(data) - first)
    data[first : first + hole] = bytes(hole) if zeros else np.random.default_rng(seed).bytes(hole)
    path.write_bytes(data)

    found = rebuild(path, schema, out)

    intact = [table for table, end in zip(tables, ends, strict=True) if end <= first]
    assert list(found.rows[: len(intact)]) == [table.num_rows for table in intact]
    for group, table in enumerate(intact):
        assert pq.ParquetFile(out).read_row_group(group).equals(table)


def test_long_columns_of_many_pages_come_back(tmp_path):
    path, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    schema, tables, ends = write(path, ["state", "done", "flags", "double"], [70_000, 5], 1)
    path.write_bytes(path.read_bytes()[: ends[0] + 10])
    assert rebuild(path, schema, out).rows == (70_000,)
    assert pq.read_table(out).equals(tables[0])


def test_a_file_that_is_no_parquet_file_is_refused(tmp_path):
    schema = datasets.Features(INDEX).arrow_schema
    for content in (b"", b"PAR", b"GIF89a" + bytes(100)):
        path = tmp_path / "x.parquet"
        path.write_bytes(content)
        with pytest.raises(FooterError, match="PAR1"):
            rebuild(path, schema, tmp_path / "out.parquet")
        assert not (tmp_path / "out.parquet").exists()


def test_a_file_of_another_schema_gives_nothing(tmp_path):
    path = tmp_path / "x.parquet"
    _, _, ends = write(path, ["tip", "state"], [5], 0)
    path.write_bytes(path.read_bytes()[: ends[-1]])
    other = datasets.Features(
        {"a": datasets.Value("bool"), **INDEX, "b": datasets.Value("int64")}
    ).arrow_schema
    assert rebuild(path, other, tmp_path / "out.parquet").rows == ()


def test_columns_repeated_metadata_between_the_chunks_are_passed_over(tmp_path):
    """pyarrow before 19 wrote each column's metadata behind its pages, too."""
    path, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    schema, tables, ends = write(path, ["state"], [5, 6], 0)
    data = path.read_bytes()
    columns = parquet_footer.leaf_columns(parquet_footer.reference_footer(schema))
    pieces, at = [], 0
    for _, chunks in parquet_footer.row_groups(memoryview(data[: ends[-1]]), columns):
        for column_, chunk in zip(columns, chunks, strict=True):
            end = chunk.pages[-1].end
            metadata = parquet_footer._column_chunk(column_, chunk)[3][1]
            pieces += [data[at:end], thrift.write_struct(metadata)]
            at = end
    path.write_bytes(b"".join(pieces))
    assert rebuild(path, schema, out).rows == (5, 6)
    assert pq.read_table(out).equals(pa.concat_tables(tables))


def test_a_footer_read_and_written_is_the_same():
    schema = datasets.Features({**FEATURES, **INDEX}).arrow_schema
    fields = parquet_footer.reference_footer(schema)
    data = thrift.write_struct(fields)
    assert thrift.read_struct(data) == (fields, len(data))


VALUES = st.one_of(
    st.tuples(st.just(thrift.I64), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just(thrift.DOUBLE), st.floats(allow_nan=False)),
    st.tuples(st.just(thrift.BINARY), st.binary(max_size=40)),
    st.booleans().map(lambda value: (thrift.BOOL_TRUE if value else thrift.BOOL_FALSE, value)),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40).map(
        lambda items: (thrift.LIST, thrift.Items(thrift.I32, items))
    ),
)


@settings(max_examples=100, deadline=None)
@given(fields=st.dictionaries(st.integers(1, 32767), VALUES, max_size=8))
def test_thrift_reads_what_it_wrote(fields):
    nested = {1: (thrift.STRUCT, fields), 40: (thrift.LIST, thrift.Items(thrift.STRUCT, [fields, {}]))}
    data = thrift.write_struct(nested)
    assert thrift.read_struct(b"xx" + data + b"rest", 2) == (nested, len(data) + 2)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_thrift_meets_garbage_with_its_own_error(data):
    try:
        _, end = thrift.read_struct(data)
    except thrift.ThriftError:
        return
    assert 0 < end <= len(data)


def test_an_announced_length_is_believed_only_as_far_as_there_are_bytes():
    huge = bytes([0x19, 0xF5]) + b"\xff\xff\xff\xff\x0f" + bytes(10)
    with pytest.raises(thrift.ThriftError, match="announced"):
        thrift.read_struct(huge)
    with pytest.raises(thrift.ThriftError, match="deep"):
        thrift.read_struct(bytes([0x1C]) * 100)
    with pytest.raises(thrift.ThriftError):
        thrift.read_struct(struct.pack("<I", 0xFFFFFFFF))
