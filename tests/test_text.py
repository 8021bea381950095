"""Words of captions and frozen text encoders, on a tokenizer and encoders made here."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tok1d.config.condition import ConditionConfig
from tok1d.data.fashion_mnist import captions as label_captions
from tok1d.errors import ConfigError, InputError, WeightsError
from tok1d.losses.masked import caption_loss
from tok1d.zoo.pretrained.text import CaptionEmbeddings, CaptionWords, TextEncoder

CAPTIONS = ["a photo of a dress", "", "a dress, a dress", "a photo of a bag"]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {**SIZES, "vocab_size": 64, "max_position_embeddings": 20, "bos_token_id": 2, "eos_token_id": 2}


def read(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(params=["clip text", "clip", "t5"])
def encoder(request: pytest.FixtureRequest, bpe: str, tmp_path: Path) -> str:
    """A folder with a random text encoder and its tokenizer: a text tower, a pair of towers, an encoder-decoder."""
    import transformers

    torch.manual_seed(0)
    model: Any
    if request.param == "t5":
        sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    elif request.param == "clip":
        vision = {**SIZES, "image_size": 32, "patch_size": 16}
        model = transformers.CLIPModel(transformers.CLIPConfig(text_config=CLIP, vision_config=vision))
    else:
        model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP))
    model.save_pretrained(tmp_path)
    read(bpe).save_pretrained(tmp_path)
    return str(tmp_path)


def test_ids_are_those_of_the_tokenizer_without_special_ones(bpe: str) -> None:
    words, tokenizer = CaptionWords(bpe, 70), read(bpe)
    ids = words.ids(CAPTIONS)
    for row, caption in zip(ids, CAPTIONS):
        assert tokenizer(caption)["input_ids"] == [*row[row >= 0].tolist(), tokenizer.eos_token_id]
        expected = torch.zeros(70)
        expected[row[row >= 0]] = 1
        assert torch.equal(words([caption])[0], expected)
    assert not words([""]).any() and words([""]).shape == (1, 70)
    torch.testing.assert_close(words(CAPTIONS[::-1]), words(CAPTIONS).flip(0))


def test_rare_words_weigh_more(bpe: str) -> None:
    words, tokenizer = CaptionWords(bpe, 70), read(bpe)
    words.fit(CAPTIONS)
    sets = [set(tokenizer(caption, add_special_tokens=False)["input_ids"]) for caption in CAPTIONS if caption]
    weights = [math.log(4 / (1 + sum(i in ids for ids in sets))) for i in range(70)]  # the empty caption is none
    assert min(weights) == 0 < max(weights), "a word that all have, and one that none has"
    for row, ids in zip(words(["a", *filter(None, CAPTIONS)]), [{*words.ids(["a"])[0].tolist()}, *sets]):
        assert row.tolist() == pytest.approx([weights[i] if i in ids else 0 for i in range(70)], abs=1e-6)


def test_weights_of_many_captions_are_those_of_a_fixed_part(bpe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = CaptionWords(bpe, 70), CaptionWords(bpe, 70)
    captions = label_captions(np.arange(3000) % 10)
    monkeypatch.setattr("tok1d.zoo.pretrained.text.IDF_CAPTIONS", 1500)  # also two chunks
    many.fit(captions)
    few.fit(captions[::2])
    assert few.idf is not None and many.idf is not None and torch.equal(few.idf, many.idf)
    counts = sum((CaptionWords(bpe, 70)([caption])[0] for caption in captions[::2][:300]), torch.zeros(70))
    few.fit(captions[::2][:300])
    torch.testing.assert_close(few.idf, (301 / (1 + counts)).log())


def test_the_loss_of_words_is_a_weighted_cross_entropy(bpe: str) -> None:
    """Written out: each caption's different words, shares in proportion to their weights."""
    words, tokenizer = CaptionWords(bpe, 70), read(bpe)
    words.fit(CAPTIONS)
    assert words.idf is not None
    logits = torch.randn(4, 70, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for row, caption in zip(logits, CAPTIONS):
        ids = sorted(set(tokenizer(caption, add_special_tokens=False)["input_ids"]))
        total = sum(words.idf[i].item() for i in ids)
        for i in ids:
            expected -= words.idf[i].item() / total * (row[i] - row.logsumexp(0)).item() / 4
    assert expected > 0.5
    assert caption_loss(logits, words(CAPTIONS)).item() == pytest.approx(expected, rel=1e-5)


def test_a_vocabulary_too_small_and_a_missing_tokenizer_are_one_line(
    bpe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(read(bpe))
    assert CaptionWords(bpe, count).vocab_size == count
    with pytest.raises(ConfigError, match=f"has {count} ids, set dim to that, got {count - 1}"):
        CaptionWords(bpe, count - 1)
    (tmp_path / "empty").mkdir()
    for name in ("/no/such/folder", str(tmp_path / "empty")):
        for make in (lambda name: CaptionWords(name, 9), lambda name: TextEncoder(name).encode(["a"])):
            with pytest.raises(WeightsError, match=r"cannot read it \(.*folder that save_pretrained wrote") as got:
                make(name)
            assert "\n" not in str(got.value) and len(str(got.value)) < 400
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"transformers is not installed; pip install 'tok1d\[text\]'"):
        CaptionWords(bpe, 70)


def test_embeddings_are_the_encoder_s_states_where_there_are_words(encoder: str) -> None:
    text = TextEncoder(encoder, max_length=12)
    captions = label_captions(np.arange(10))
    states, mask = text.encode(captions)
    assert states.shape == (10, 12, 16) == (10, 12, text.dim) and states.dtype == torch.float32
    tokenizer = read(encoder)
    counts = [min(len(ids), 12) for ids in tokenizer(captions)["input_ids"]]
    assert mask.sum(1).tolist() == counts and min(counts) < 12, "words and the end of the sentence"
    assert not states[~mask].any() and states[mask].abs().sum(-1).min() > 0
    network = text._load()[1]
    for i in (0, 4):
        ids = tokenizer([captions[i]], truncation=True, max_length=12, return_tensors="pt")
        with torch.no_grad():
            alone = network(**{key: ids[key] for key in ("input_ids", "attention_mask")}).last_hidden_state
        torch.testing.assert_close(states[i, : counts[i]], alone[0], atol=1e-5, rtol=1e-5)
    again, _ = TextEncoder(encoder, max_length=12).encode(captions[::-1])
    torch.testing.assert_close(again.flip(0), states, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(states[0], states[5], atol=1e-3)


def test_an_encoder_is_frozen_lazy_and_in_no_state_dict(encoder: str) -> None:
    class Holder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = TextEncoder(encoder, max_length=12)

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    holder = Holder().train()
    assert holder.text._parts is None
    states, _ = holder.text.encode(["a dress"])
    assert torch.equal(torch.rand(1), expected), "reading an encoder draws no random number"
    network = holder.text._load()[1]
    assert not states.requires_grad and not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not holder.state_dict() and not list(holder.parameters())
    with pytest.raises(InputError, match="expected a list of captions, got 'a dress'"):
        holder.text.encode("a dress")


def test_an_unsuitable_encoder_is_one_line(bpe: str, tmp_path: Path) -> None:
    import transformers
    from safetensors.torch import load_file, save_file

    transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP)).save_pretrained(tmp_path / "clip")
    sizes = {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 2, "eos_token_id": 2}
    transformers.GPT2Model(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt")
    for name in ("clip", "gpt"):
        read(bpe).save_pretrained(tmp_path / name)
    with pytest.raises(ConfigError, match="expected a max_length up to 20, got 21"):
        TextEncoder(str(tmp_path / "clip"), 21).encode(["a"])
    with pytest.raises(ConfigError, match="expected a max_length of at least 1, got 0"):
        TextEncoder("anything", 0)
    with pytest.raises(ConfigError, match="expected T5, CLIP, BERT or a similar text encoder, got gpt2"):
        TextEncoder(str(tmp_path / "gpt")).encode(["a"])
    file = tmp_path / "clip" / "model.safetensors"
    state = load_file(file)
    gone = sorted(state)[0]
    save_file({name: value for name, value in state.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=f"1 weights are missing, such as {gone}"):
        TextEncoder(str(tmp_path / "clip"), 12).encode(["a"])


def condition(folder: str, **keys: Any) -> ConditionConfig:
    return ConditionConfig(**{"kind": "text", "encoder": folder, "dim": 16, "length": 12, **keys})


def test_embeddings_of_repeated_captions_are_made_once(text_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    embed, asked = CaptionEmbeddings(condition(text_folder), CAPTIONS), []
    encode = embed.encoder.encode
    monkeypatch.setattr(embed.encoder, "encode", lambda texts, *rest: asked.append(texts) or encode(texts, *rest))
    first = embed(CAPTIONS)
    assert first.shape == (4, 12, 16) and not first[1].any(), "no caption"
    assert asked == [[text] for text in CAPTIONS if text]
    assert torch.equal(embed(CAPTIONS[::-1]), first.flip(0)) and len(asked) == 3
    torch.testing.assert_close(first[[0, 2, 3]], encode([text for text in CAPTIONS if text])[0], atol=1e-5, rtol=1e-5)
    assert not embed(["  ", ""]).any() and len(asked) == 3


def test_too_many_captions_to_keep_are_encoded_a_batch(text_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = CaptionEmbeddings(condition(text_folder), CAPTIONS)
    monkeypatch.setattr("tok1d.zoo.pretrained.text.KEPT_BYTES", 4 * 12 * 16 * 3)
    embed = CaptionEmbeddings(condition(text_folder), CAPTIONS)  # four different ones
    assert embed.kept is None and kept.kept is not None
    torch.testing.assert_close(embed(CAPTIONS), kept(CAPTIONS), atol=1e-5, rtol=1e-5)
    assert torch.equal(embed(CAPTIONS), embed(CAPTIONS))
    assert CaptionEmbeddings(condition(text_folder), CAPTIONS[:3]).kept == {}


def test_one_encoder_serves_all_threads_and_users(text_folder: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    embed, other = (CaptionEmbeddings(condition(text_folder), ["a"]) for _ in range(2))
    assert embed.encoder is other.encoder
    expected = embed(["a dress"])
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda i: (embed, other)[i % 2](["a dress", f"a photo of {i}"]), range(40)):
            assert torch.equal(found[:1], expected)


def test_an_encoder_that_does_not_fit_the_model_is_one_line(text_folder: str) -> None:
    for keys, message in (
        ({"encoder": ""}, r"^model\.condition\.encoder: no text encoder is bundled, expected a transformers name or"),
        ({"dim": 9}, r"^model\.condition\.dim: expected 16, the width of .*text encoder\d*, got 9$"),
        ({"length": 21}, "expected a max_length up to 20, got 21"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            CaptionEmbeddings(condition(text_folder, **keys), [])
        assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="cannot read it"):
        CaptionEmbeddings(condition("/no/such/folder"), [])
