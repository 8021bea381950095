"""SMAP with captions: what depends on a caption, that padding and its length do not count, null, and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.registry import build_model_config
from tok1d.errors import ConfigError, InputError
from tok1d.tokenizers.condition import TextCondition
from tok1d.tokenizers.smap import SMAP
from tok1d.zoo.store import build_model

SMALL = {"patch": 4, "dim": 16, "depth": 2, "heads": 2}
WIDER = {"patch": 4, "dim": 24, "depth": 2, "heads": 2}
N, E, T = 6, 5, 7
TEXT = {"kind": "text", "encoder": "nobody/asks", "dim": E, "length": T}


def config(**keys: Any) -> Any:
    sizes = {"name": "smap", "image_size": 16, "num_tokens": N, "token_dim": 4, "condition": TEXT}
    nets = {"encoder": SMALL, "decoder": WIDER, "bottleneck": {"name": "softvq", "size": 9, "num_codebooks": 2}}
    return build_model_config({**sizes, **nets, **keys})


def tokenizer(**keys: Any) -> SMAP:
    torch.manual_seed(0)
    model = build_model(config(**keys))
    assert isinstance(model, SMAP)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def captions(*counts: int) -> Tensor:
    """Captions of so many sub-words."""
    rows = torch.randn(len(counts), T, E, generator=torch.Generator().manual_seed(2))
    for row, count in zip(rows, counts):
        row[count:] = 0
    return rows


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_without_tokens_the_image_depends_on_the_caption_alone(images: Tensor) -> None:
    model, first = tokenizer(), captions(4, 2)
    cond = torch.stack([first[0], first[0], first[1]])
    tokens = model.encode(images, cond)
    decoded = model.decode(tokens, cond, keep=0)
    close(decoded[0], decoded[1])
    assert not torch.allclose(decoded[0], decoded[2], atol=1e-3)
    assert not torch.allclose(*model.decode(tokens, cond)[:2], atol=1e-3)
    close(model.decode(tokens[:, :0], cond), decoded)
    close(model.reconstruct((images, cond), 0.0, keep=0)[0].clamp(0, 1), decoded)


def test_equal_captions_have_equal_outputs_and_every_sub_word_counts(images: Tensor) -> None:
    model, same = tokenizer(), images[:1].expand(3, -1, -1, -1)
    cond = captions(4)[[0, 0, 0]].clone()
    cond[2, 3] += 0.5
    tokens = model.encode(same, cond)
    close(tokens[0], tokens[1])
    assert not torch.allclose(tokens[0], tokens[2], atol=1e-3)
    decoded = model.decode(tokens[[0, 0, 0]], cond)
    close(decoded[0], decoded[1])
    assert not torch.allclose(decoded[0], decoded[2], atol=1e-3)
    moved = cond[:1].clone()
    moved[:, :4] = moved[:, [1, 0, 2, 3]]
    assert not torch.allclose(model.decode(tokens[:1], moved), decoded[:1], atol=1e-3), "their order counts"


def test_padding_and_its_length_do_not_count(images: Tensor) -> None:
    model, cond = tokenizer(), captions(4, 2, 3)
    tokens, keep = model.encode(images, cond), torch.tensor([0, 5, 2])
    short = cond[:, :4]
    close(model.encode(images, short), tokens)
    close(model.decode(tokens, short, keep=keep), model.decode(tokens, cond, keep=keep))
    for i in range(3):
        alone = cond[i : i + 1, : (4, 2, 3)[i]]
        close(model.encode(images[i : i + 1], alone), tokens[i : i + 1])
        for k in (0, 3, N):
            both = model.decode(tokens, cond, keep=k)
            close(model.decode(tokens[i : i + 1], alone, keep=k), both[i : i + 1])
    # Equal to a model with fewer caption positions: padding has no effect.
    fewer = tokenizer(condition={**TEXT, "length": 4})
    state = model.state_dict()
    for side in ("encoder", "decoder"):
        state[f"condition.{side}_position"] = state[f"condition.{side}_position"][:, :4]
    fewer.load_state_dict(state)
    close(fewer.encode(images, short), tokens)
    close(fewer.decode(tokens, short), model.decode(tokens, cond))


def test_masking_the_tail_equals_cutting_it_off(images: Tensor) -> None:
    model, cond = tokenizer(decoder={**WIDER, "rotary": "axial", "heads": 2}), captions(4, 2, 3)
    tokens = model.encode(images, cond)
    for k in range(N + 1):
        (cut, *_), (masked, *_) = (
            model.reconstruct((images, cond), 0.0, keep=keep) for keep in (k, torch.full((3,), k))
        )
        close(masked, cut)
        close(model.decode(tokens[:, :k], cond), model.decode(tokens, cond, keep=k))


def test_no_caption_is_the_null_vector_on_both_sides(images: Tensor) -> None:
    model, cond = tokenizer(), captions(4, 0, 1)
    assert isinstance(model.condition, TextCondition)
    tokens = model.encode(images)
    close(model.encode(images, torch.zeros(3, 2, E)), tokens)
    close(model.encode(images, cond)[1], tokens[1])
    assert not torch.allclose(model.encode(images, cond)[0], tokens[0], atol=1e-3)
    with torch.no_grad():
        model.condition.captions.null_vector.copy_(cond[2, :1])
    close(model.encode(images, cond)[2], model.encode(images)[2])
    close(model.decode(tokens, cond)[2], model.decode(tokens)[2])
    everything = tokenizer(label_dropout=1.0).train()
    (first, *_), (second, *_) = (everything.reconstruct((images, given), 0.0, keep=3) for given in (cond, None))
    close(first, second)


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_gradients_reach_the_projection_or_the_null_vector(images: Tensor, dropout: float) -> None:
    model = tokenizer(label_dropout=dropout, head="conv").train()
    model.reconstruct((images, captions(4, 2, 3)), 0.0, keep=N)[2]["loss_reconstruction"].backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    still = {name for name, weight in model.named_parameters() if not weight.grad.any()}  # type: ignore[union-attr]
    # Where everything is dropped the null vector goes through the projection too.
    assert still == ({"condition.captions.null_vector"} if dropout == 0 else set())
    assert isinstance(model.condition, TextCondition)
    positions = model.condition.encoder_position.grad
    assert positions is not None and positions.abs().sum(-1)[0].bool().tolist() == [
        i < (4 if dropout == 0 else 1) for i in range(T)
    ], "padding teaches nothing"


def test_other_conditions_are_one_line(images: Tensor) -> None:
    text, classes = tokenizer(), tokenizer(condition={}, num_classes=4)
    tokens, labels = text.encode(images), torch.tensor([0, 1, 2])
    for call in (lambda: text.encode(images, labels), lambda: text.decode(tokens, labels)):
        with pytest.raises(
            InputError, match=r"^this model is conditioned on captions, expected embeddings \(B, at most 7, 5\)"
        ):
            call()
    for call in (lambda: classes.encode(images, captions(1, 2, 3)), lambda: classes.decode(tokens, captions(1, 2, 3))):
        with pytest.raises(InputError, match=r"^expected class ids \(B,\) of integers, got torch\.float32"):
            call()
    with pytest.raises(InputError, match=r"class vectors: expected .*, got one conditioned on captions"):
        text.class_vectors()
    assert text.spec.needs_label and text.spec.reads_captions and text.spec.num_classes == 0
    assert not classes.spec.reads_captions


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"condition_on": "none"}, "model.condition.kind: condition_on=none has no condition, expected class"),
        ({"condition": {"encoder": "x"}}, "model.condition.encoder: only kind=text uses a text encoder, expected"),
        ({"condition": {"kind": "picture"}}, "model.condition.kind: expected "),
    ],
)
def test_contradictions_are_one_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as error:
        config(**keys)
    assert "\n" not in str(error.value)
