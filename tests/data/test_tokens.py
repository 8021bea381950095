import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

from tok1d.data.token_writer import TokenWriter, show_bytes
from tok1d.data.tokens import Layout, TokenCache
from tok1d.errors import DataError

META = {"tokenizer_fingerprint": "abc", "data_fingerprint": "123", "transform": "center", "keep": 3, "views": 2}
SIZES = {"num_tokens": 3, "dim": 4, "dtype": "float32", "rows_per_shard": 5}
RNG = np.random.default_rng(0)
TOKENS, LABELS = RNG.standard_normal((23, 3, 4)).astype(np.float32), np.arange(23)


def begin(folder, rows=23, part=(0, 1), meta=META, overwrite=False, **changes):
    return TokenWriter(folder, Layout(**{**SIZES, **changes}), rows, meta=meta, part=part, overwrite=overwrite)


def put(writer, tokens=TOKENS, labels=LABELS, chunk=4, shards=None):
    """Write the missing rows, or only those of the first shards."""
    for start, stop in writer.ranges[:shards]:
        for first in range(start, stop, chunk):
            rows = slice(first, min(first + chunk, stop))
            writer.write(tokens[rows], torch.from_numpy(labels[rows]))


def fill(folder, tokens=TOKENS, labels=LABELS, chunk=4, **changes):
    with begin(folder, len(tokens), **changes) as writer:
        put(writer, tokens, labels, chunk)
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("chunk", [1, 4, 23])
@pytest.mark.parametrize("rows_per_shard", [1, 5, 23, 100])
def test_what_is_written_is_read_in_any_order(tmp_path, chunk, rows_per_shard):
    cache = TokenCache(fill(tmp_path, chunk=chunk, rows_per_shard=rows_per_shard))
    indices = [22, 0, 7, 7, 5, 19]
    tokens, labels = cache.batch(indices)
    assert tokens.dtype == torch.float32 and labels.dtype == torch.int64
    np.testing.assert_array_equal(tokens, TOKENS[indices])
    assert labels.tolist() == indices
    assert (len(cache), cache.num_tokens, cache.dim, cache.views, cache.meta) == (23, 3, 4, 2, META)


def test_half_precision_is_stored_and_float32_returned(tmp_path):
    cache = TokenCache(fill(tmp_path, dtype="float16"))
    tokens, _ = cache.batch(range(23))
    np.testing.assert_array_equal(tokens, TOKENS.astype(np.float16).astype(np.float32))


def test_bfloat16_is_stored_as_such_and_float32_returned(tmp_path):
    cache = TokenCache(fill(tmp_path, dtype="bfloat16"))
    tokens, _ = cache.batch([22, 3, 4])
    expected = torch.from_numpy(TOKENS[[22, 3, 4]]).bfloat16()
    assert tokens.dtype == torch.float32 and torch.equal(tokens, expected.float())
    stored = load_torch(tmp_path / "shard-00000.safetensors")["tokens"]
    assert stored.dtype == torch.bfloat16 and torch.equal(stored[3:5], expected[1:])
    assert (tmp_path / "shard-00000.safetensors").stat().st_size < 5 * 3 * 4 * 4 + 5 * 8 + 1000


def test_ids_are_exact(tmp_path):
    ids = np.arange(23 * 3).reshape(23, 3) + 2**40
    cache = TokenCache(fill(tmp_path, torch.from_numpy(ids), dtype="int64", dim=0))
    found, _ = cache.batch([22, 1])
    assert found.dtype == torch.int64 and found.tolist() == ids[[22, 1]].tolist()


def test_shards_are_ordinary_safetensors_files(tmp_path):
    fill(tmp_path)
    np.testing.assert_array_equal(load_file(tmp_path / "shard-00001.safetensors")["tokens"], TOKENS[5:10])


def test_an_unfinished_folder_is_no_cache_and_resuming_equals_unbroken(tmp_path):
    folder, whole = tmp_path / "cut", fill(tmp_path / "whole")
    begin(folder).write(TOKENS[:13], LABELS[:13])  # two full shards and three rows that are lost
    with pytest.raises(DataError, match="unfinished"):
        TokenCache(folder)
    (folder / ".shard-00002.safetensors.tmp").write_bytes(b"cut off while writing")
    writer = begin(folder)
    assert (writer.rows_done, writer.ranges) == (10, [(10, 15), (15, 20), (20, 23)])
    fill(folder)
    assert content(folder) == content(whole)


def test_writers_in_turns_one_of_them_killed_equal_one_writer(tmp_path):
    folder, whole = tmp_path / "parts", fill(tmp_path / "whole")
    first, second = begin(folder, part=(0, 2)), begin(folder, part=(1, 2))
    assert (first.num_rows, second.num_rows) == (10, 13)
    put(second, shards=1)
    put(first, shards=1)
    first.write(TOKENS[5:7], LABELS[5:7])  # the writer stops here
    (folder / ".shard-00001.safetensors.0123.tmp").write_bytes(b"cut off while writing")
    put(second, chunk=3)
    assert not second.close() and not (folder / "index.json").exists()
    again = begin(folder, part=(0, 2))
    assert (again.rows_done, again.ranges) == (5, [(5, 10)])
    put(again, chunk=2)
    assert again.close()
    assert content(folder) == content(whole)


def test_the_number_of_writers_may_change_and_some_have_nothing_to_do(tmp_path):
    folder = tmp_path / "parts"
    put(begin(folder, part=(2, 4)))
    for number in range(7):  # five shards
        writer = begin(folder, part=(number, 7))
        put(writer)
        assert writer.close() == (number == 6)
    assert content(folder) == content(fill(tmp_path / "whole"))
    late = begin(folder, part=(0, 7))
    assert (late.rows_done, late.ranges, late.close()) == (late.num_rows, [], True)


@pytest.mark.parametrize(("rows", "rows_per_shard", "parts"), [(1, 5, 3), (23, 5, 2), (20, 5, 3), (7, 1, 7), (3, 4, 1)])
def test_parts_are_all_rows_once(tmp_path, rows, rows_per_shard, parts):
    writers = [begin(tmp_path, rows, (i, parts), rows_per_shard=rows_per_shard) for i in range(parts)]
    covered = [row for writer in writers for start, stop in writer.ranges for row in range(start, stop)]
    assert covered == list(range(rows)) and sum(writer.num_rows for writer in writers) == rows


def test_a_damaged_shard_is_written_anew(tmp_path):
    whole = content(fill(tmp_path))
    (tmp_path / "index.json").unlink()
    (tmp_path / "shard-00001.safetensors").write_bytes(whole["shard-00001.safetensors"][:-1])
    assert begin(tmp_path).ranges == [(5, 10)]
    assert begin(tmp_path, part=(1, 2)).ranges == []
    assert not begin(tmp_path, part=(1, 2)).close()
    fill(tmp_path)
    assert content(tmp_path) == whole


def test_a_cache_of_the_first_version_is_read_and_continued(tmp_path):
    """Written by numpy, as single writers did, with the same header and index."""
    identity = {"format": "tok1d-tokens-1", **SIZES, "meta": META}
    for number, start in enumerate(range(0, 23, 5)):
        rows = slice(start, start + 5)
        parts = {"tokens": TOKENS[rows], "labels": LABELS[rows].astype(np.int64)}
        path = tmp_path / f"shard-{number:05d}.safetensors"
        save_file(parts, path, metadata={"identity": json.dumps(identity, sort_keys=True)})
    assert begin(tmp_path).ranges == []
    shards = [f"shard-{number:05d}.safetensors" for number in range(5)]
    (tmp_path / "index.json").write_text(json.dumps({**identity, "rows": 23, "shards": shards}))
    np.testing.assert_array_equal(TokenCache(tmp_path).batch(range(23))[0], TOKENS)


def test_too_little_free_space_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    need = 23 * (3 * 4 * 4 + 8)
    free = [need - 1]
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free[0]))
    with pytest.raises(DataError, match=r"cache: needs 1\.3 kB, has 1\.3 kB free: choose another folder"):
        begin(tmp_path / "deep" / "cache")
    assert not (tmp_path / "deep").exists()
    free[0] = need
    put(begin(tmp_path / "cache"), shards=2)
    free[0] = 13 * (3 * 4 * 4 + 8)  # rows already written need no free space
    fill(tmp_path / "cache")
    with pytest.raises(DataError, match="needs"):
        fill(tmp_path / "other")
    fill(tmp_path / "cache", overwrite=True)  # the old files are removed first


def test_sizes_are_shown_in_decimal_units():
    layout = Layout(32, 16, "bfloat16", 65520)
    rows = 1_281_167 * 20
    assert show_bytes(layout.num_bytes(rows) - 8 * rows) == "26.2 GB"
    assert show_bytes(Layout(256, 16, "bfloat16", 65520).num_bytes(rows) - 8 * rows) == "209.9 GB"
    assert show_bytes(Layout(32, 16, "float32", 65520).num_bytes(rows) - 8 * rows) == "52.5 GB"
    assert [show_bytes(count) for count in (30_720_000, 1234)] == ["30.7 MB", "1.2 kB"]
    assert layout.num_shards(rows) == 392


def test_an_exception_leaves_the_cache_unfinished(tmp_path):
    with pytest.raises(KeyboardInterrupt), begin(tmp_path) as writer:
        writer.write(TOKENS[:7], LABELS[:7])
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.safetensors"]


def test_finished_and_foreign_caches_are_only_overwritten_on_request(tmp_path):
    other_meta = {**META, "tokenizer_fingerprint": "def"}
    fill(tmp_path)
    for settings in ({}, {"part": (0, 2), "meta": other_meta}, {"part": (1, 2), "rows": 22}):
        with pytest.raises(DataError, match="finished"):
            begin(tmp_path, **settings)
    (tmp_path / "index.json").unlink()
    for part in ((0, 1), (1, 2)):
        with pytest.raises(DataError, match="other settings"):
            begin(tmp_path, part=part, meta=other_meta)
    other = TOKENS[:8] + 1
    np.testing.assert_array_equal(
        TokenCache(fill(tmp_path, other, LABELS[:8], overwrite=True)).batch(range(8))[0], other
    )


def test_a_copy_of_a_shard_is_not_one(tmp_path):
    copy = fill(tmp_path) / "shard-00000 (1).safetensors"
    copy.write_bytes((tmp_path / "shard-00000.safetensors").read_bytes())
    assert len(TokenCache(fill(tmp_path, overwrite=True))) == len(TOKENS) and copy.exists()
    (tmp_path / "index.json").unlink()
    with pytest.raises(DataError, match=r"contains files that are not of a token cache \(shard-00000 \(1\)"):
        begin(tmp_path)


def test_a_folder_of_other_things_is_not_overwritten(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(DataError, match=r"contains files that are not of a token cache \(model\.safetensors\)"):
        begin(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_parts_may_overwrite_one_after_the_other(tmp_path):
    fill(tmp_path / "cache")
    other, meta = TOKENS[:14] + 1, {**META, "tokenizer_fingerprint": "def"}
    for number in range(2):
        writer = begin(tmp_path / "cache", 14, (number, 2), meta, overwrite=True)
        assert not (tmp_path / "cache" / "index.json").exists() and writer.rows_done == 0
        put(writer, other)
        assert writer.close() == (number == 1)
    assert content(tmp_path / "cache") == content(fill(tmp_path / "whole", other, LABELS[:14], meta=meta))


@pytest.mark.parametrize("damage", ["missing", "half", "header", "empty"])
def test_damaged_shards_are_named(tmp_path, damage):
    path = fill(tmp_path) / "shard-00002.safetensors"
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"half": data[:-1], "header": data[:20], "empty": b""}[damage])
    with pytest.raises(DataError, match=r"shard-00002\.safetensors") as caught:
        TokenCache(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_shard_of_another_cache_and_a_damaged_index_are_named(tmp_path):
    fill(tmp_path / "one")
    fill(tmp_path / "two", TOKENS[:, :2], num_tokens=2)
    (tmp_path / "two" / "shard-00001.safetensors").replace(tmp_path / "one" / "shard-00001.safetensors")
    with pytest.raises(DataError, match=r"shard-00001\.safetensors.*does not fit"):
        TokenCache(tmp_path / "one")
    index = tmp_path / "two" / "index.json"
    for text in ("{", "[]", json.dumps({"format": "other"})):
        index.write_text(text)
        with pytest.raises(DataError, match=r"index\.json"):
            TokenCache(tmp_path / "two")


def test_check_names_both_fingerprints(tmp_path):
    cache = TokenCache(fill(tmp_path))
    cache.check(tokenizer_fingerprint="abc", data_fingerprint="123")
    with pytest.raises(DataError, match=r"made by tokenizer abc, this is def: run tok1d encode again"):
        cache.check(tokenizer_fingerprint="def")
    with pytest.raises(DataError, match=r"made from data 123, this is 456"):
        cache.check(tokenizer_fingerprint="abc", data_fingerprint="456")


def test_tokens_that_are_not_finite_are_refused(tmp_path):
    writer = begin(tmp_path, dtype="float16")
    for bad in (np.nan, np.inf, 1e6):  # the last overflows float16
        tokens = TOKENS[:2].copy()
        tokens[1, 0, 0] = bad
        with pytest.raises(DataError, match="not finite"):
            writer.write(tokens, LABELS[:2])
    with pytest.raises(DataError, match="at least one row"):
        begin(tmp_path, rows=0)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        begin(tmp_path / "file" / "cache")


def test_wrong_shapes_and_rows_are_our_own_mistakes(tmp_path):
    writer = begin(tmp_path / "new")
    with pytest.raises(ValueError, match="expected tokens"):
        writer.write(TOKENS[:, :2], LABELS)
    with pytest.raises(ValueError, match=r"cannot take torch\.int64"):
        writer.write(np.zeros((1, 3, 4), np.int64), LABELS[:1])
    with pytest.raises(ValueError, match=r"rows .* are missing"):
        writer.close()
    put(writer)
    with pytest.raises(ValueError, match="1 rows more"):
        writer.write(TOKENS[:1], LABELS[:1])
    with pytest.raises(ValueError, match="float32, float16 or bfloat16"):
        Layout(3, 4, "float64", 5)
    cache = TokenCache(fill(tmp_path / "full"))
    for row in (-1, 23):
        with pytest.raises(IndexError):
            cache.batch([0, row])
