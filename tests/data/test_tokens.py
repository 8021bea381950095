import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tok1d.data.tokens import TokenCache, TokenWriter
from tok1d.errors import DataError

META = {"tokenizer_fingerprint": "abc", "data_fingerprint": "123", "transform": "center", "keep": 3, "views": 2}
SIZES = {"num_tokens": 3, "dim": 4, "rows_per_shard": 5, "meta": META}
RNG = np.random.default_rng(0)
TOKENS, LABELS = RNG.standard_normal((23, 3, 4)).astype(np.float32), np.arange(23)


def fill(folder, tokens=TOKENS, labels=LABELS, chunk=4, **changes):
    with TokenWriter(folder, **{**SIZES, **changes}) as writer:
        for start in range(writer.rows_done, len(tokens), chunk):
            writer.write(tokens[start : start + chunk], torch.from_numpy(labels[start : start + chunk]))
    return folder


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
    writer = TokenWriter(folder, **SIZES)
    writer.write(TOKENS[:13], LABELS[:13])  # two full shards and three rows that are lost
    with pytest.raises(DataError, match="unfinished"):
        TokenCache(folder)
    (folder / ".shard-00002.safetensors.tmp").write_bytes(b"cut off while writing")
    assert TokenWriter(folder, **SIZES).rows_done == 10
    fill(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in whole.iterdir())


def test_a_short_last_shard_is_written_anew(tmp_path):
    fill(tmp_path)
    (tmp_path / "index.json").unlink()  # as if interrupted just before it
    assert TokenWriter(tmp_path, **SIZES).rows_done == 20
    np.testing.assert_array_equal(TokenCache(fill(tmp_path)).batch(range(23))[0], TOKENS)


def test_an_exception_leaves_the_cache_unfinished(tmp_path):
    with pytest.raises(KeyboardInterrupt), TokenWriter(tmp_path, **SIZES) as writer:
        writer.write(TOKENS[:7], LABELS[:7])
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.safetensors"]


def test_finished_and_foreign_caches_are_not_overwritten_unless_asked(tmp_path):
    fill(tmp_path)
    with pytest.raises(DataError, match="finished"):
        TokenWriter(tmp_path, **SIZES)
    (tmp_path / "index.json").unlink()
    with pytest.raises(DataError, match="other settings"):
        TokenWriter(tmp_path, **{**SIZES, "meta": {**META, "tokenizer_fingerprint": "def"}})
    other = TOKENS[:8] + 1
    np.testing.assert_array_equal(
        TokenCache(fill(tmp_path, other, LABELS[:8], overwrite=True)).batch(range(8))[0], other
    )


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
    writer = TokenWriter(tmp_path, **{**SIZES, "dtype": "float16"})
    for bad in (np.nan, np.inf, 1e6):  # the last overflows float16
        tokens = TOKENS[:2].copy()
        tokens[1, 0, 0] = bad
        with pytest.raises(DataError, match="not finite"):
            writer.write(tokens, LABELS[:2])
    with pytest.raises(DataError, match="no tokens"):
        writer.close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        TokenWriter(tmp_path / "file" / "cache", **SIZES)


def test_wrong_shapes_and_rows_are_our_own_mistakes(tmp_path):
    writer = TokenWriter(tmp_path / "new", **SIZES)
    with pytest.raises(ValueError, match="expected tokens"):
        writer.write(TOKENS[:, :2], LABELS)
    with pytest.raises(ValueError, match="cannot take int64"):
        writer.write(np.zeros((1, 3, 4), np.int64), LABELS[:1])
    cache = TokenCache(fill(tmp_path / "full"))
    for row in (-1, 23):
        with pytest.raises(IndexError):
            cache.batch([0, row])
