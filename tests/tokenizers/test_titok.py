"""TiTok: round trips, what text does, image sizes, gradients, refusals, and the legacy form's order of memory."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.registry import build_model_config
from tok1d.errors import ConfigError, InputError
from tok1d.tokenizers.titok import TiTok
from tok1d.zoo.compat.titok import LegacyTiTok, PixelBlock, PixelLevel, legacy_order
from tok1d.zoo.store import build_model

SMALL = {"patch": 4, "dim": 16, "depth": 2, "heads": 2}
VQ = {"name": "vq", "size": 9, "l2": False}
KINDS: dict[str, Any] = {
    "vq": VQ,
    "kl": {"name": "kl"},
    "plain": {"name": "plain"},
    "softvq": {"name": "softvq", "size": 9, "num_codebooks": 2},
}
TEXT = {"text": True, "text_length": 5, "text_dim": 7}
PIXELS = {"code_dim": 6, "width": 32, "mult": [1, 1, 2], "blocks": 1}  # four pixels a patch


def built(mapping: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = build_model(build_model_config(mapping))
    for weight in model.parameters():  # so that small effects are no rounding
        nn.init.normal_(weight, mean=float(weight.dim() == 1), std=0.5)
    return model


def tokenizer(**keys: Any) -> TiTok:
    sizes = {"image_size": 16, "num_tokens": 6, "token_dim": 4, "bottleneck": VQ}
    return built({"name": "titok", **sizes, "encoder": SMALL, "decoder": SMALL, **keys})


def legacy(**keys: Any) -> LegacyTiTok:
    sizes = {"image_size": 16, "num_tokens": 6, "token_dim": 4, "bottleneck": {"name": "vq", "size": 9}}
    parts = {"encoder": SMALL, "decoder": SMALL, "codes": 11, "pixels": PIXELS}
    return built({"name": "titok_legacy", **sizes, **parts, **keys})


def spread(model: Any, images: Tensor) -> Tensor:
    """Ids of the images, after the codebook has become half of their own latents: several occur."""
    states = model.states(images) if isinstance(model, LegacyTiTok) else model.encoder(images)
    with torch.no_grad():
        model.bottleneck.codebook.copy_(model.bottleneck.proj(states).flatten(0, 1)[::2])
    ids = model.encode(images)
    assert len(ids.unique()) >= 5
    return ids


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_ids_survive_the_way_through_their_entries(images: Tensor) -> None:
    for model in (tokenizer().eval(), tokenizer(bottleneck={**VQ, "l2": True}).eval(), legacy().eval()):
        ids = spread(model, images)
        assert ids.shape == (3, 6) and ids.dtype == torch.int64
        assert model.spec.vocab_size == 9 and not model.spec.ordered and model.spec.deterministic
        vq: Any = model.bottleneck
        every = torch.arange(9)[:, None]
        assert torch.equal(vq.distances(vq.embed(every)).argmin(-1), every)
        recon, entries, _ = model.reconstruct((images,), 0.0)
        torch.testing.assert_close(vq.embed(ids), entries)
        # Straight through the gradient, the entries are rounded.
        torch.testing.assert_close(model.decode(ids), recon.clamp(0, 1), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_and_decoding_are_deterministic(images: Tensor, kind: str) -> None:
    model = tokenizer(bottleneck=KINDS[kind]).train()
    tokens = model.encode(images)
    assert torch.equal(tokens, model.encode(images))
    decoded = model.decode(tokens, keep=6)
    assert decoded.shape == images.shape and torch.equal(decoded, model.decode(tokens))
    assert 0 <= decoded.min() < decoded.max() <= 1
    if kind == "kl":  # the mean, while training uses samples
        moments: Any = model.bottleneck
        assert torch.equal(tokens, moments.posterior(model.encoder(images)).mean)


def test_equal_tokens_in_equal_places_are_equal_images() -> None:
    model = tokenizer()
    ids = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    decoded = model.decoder.decode(model.bottleneck.embed(ids), (16, 16))
    torch.testing.assert_close(decoded[0], decoded[1])
    assert not torch.allclose(decoded[0], decoded[2], atol=1e-3), "tokens have places"


def test_a_patch_of_the_head_lies_where_its_state_stands() -> None:
    decoder = tokenizer().decoder
    nn.init.zeros_(decoder.proj.weight)
    with torch.no_grad():
        decoder.proj.bias.copy_(torch.arange(48.0))
        nn.init.dirac_(decoder.conv.weight)
        nn.init.zeros_(decoder.conv.bias)
        image = decoder.decode(torch.zeros(1, 6, 4), (16, 16))[0]
    row, column, channel = torch.meshgrid(torch.arange(16), torch.arange(16), torch.arange(3), indexing="ij")
    assert torch.equal(image.permute(1, 2, 0), (row % 4 * 12 + column % 4 * 3 + channel).float())


def test_text_changes_the_image_and_not_the_tokens(images: Tensor) -> None:
    model, text = tokenizer(**TEXT), torch.randn(3, 5, 7)
    ids = model.encode(images)
    decoded = model.decoder.decode(model.bottleneck.embed(ids), (16, 16), text)
    assert torch.equal(ids, model.encode(images, text))
    torch.testing.assert_close(model.decode(ids, text), decoded.clamp(0, 1))
    other = model.decoder.decode(model.bottleneck.embed(ids), (16, 16), text.flip(0))
    torch.testing.assert_close(other[1], decoded[1])
    assert not torch.allclose(other[0], decoded[0])
    order = model.decoder.decode(model.bottleneck.embed(ids), (16, 16), text.flip(1))
    assert not torch.allclose(order, decoded), "words have places"
    assert model.decode(ids, text[:, :2]).shape == images.shape, "a shorter text takes the first places"
    recon, _, _ = model.reconstruct((images, torch.zeros(3), text), 0.0)
    torch.testing.assert_close(recon, decoded, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "none"),
        (torch.zeros(3, 6, 7), r"\(3, 6, 7\) of torch.float32"),
        (torch.zeros(2, 5, 7), r"\(2, 5, 7\)"),
        (torch.zeros(3, 5, 8), r"\(3, 5, 8\)"),
        (torch.tensor([1, 2, 3]), r"\(3,\) of torch.int64"),
    ],
)
def test_a_missing_or_unfit_text_is_one_line(images: Tensor, text: Tensor | None, found: str) -> None:
    model = tokenizer(**TEXT)
    expected = rf"^text: this decoder reads features of shape \(3, 1\.\.5, 7\) as {{}}, got {found}"
    for place, call in (
        ("cond", lambda: model.decode(torch.zeros(3, 6, dtype=torch.int64), text)),
        ("a batch's third entry", lambda: model.losses((images, None, text), 0.0)),
    ):
        with pytest.raises(InputError, match=expected.format(place)) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_decoder_without_text_ignores_labels(images: Tensor) -> None:
    model = tokenizer()
    ids = model.encode(images, torch.tensor([1, 2, 3]))
    assert torch.equal(model.decode(ids, torch.tensor([1, 2, 3])), model.decode(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_reaches_every_weight(images: Tensor, kind: str) -> None:
    model = tokenizer(bottleneck=KINDS[kind], **TEXT).train()
    terms = model.losses((images, None, torch.randn(3, 5, 7)), 0.0)
    sum(value for name, value in terms.items() if name.startswith("loss_")).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_positions_and_registers_of_smap_for_a_matched_comparison(images: Tensor) -> None:
    """Rotary positions, LayerScale and a register: options of TiTok's networks, off by default, each with weights."""
    plain, parts = tokenizer(), {"rotary": "mixed", "layer_scale": 1.0, "registers": 1}
    for key, value, named in zip(parts, parts.values(), ("freqs", "gamma", "registers"), strict=True):
        model = tokenizer(encoder={**SMALL, key: value}, decoder={**SMALL, key: value})
        own = {name for name, _ in model.named_parameters()} - {name for name, _ in plain.named_parameters()}
        assert own and all(named in name for name in own), own
        recon, _, terms = model.reconstruct((images,), 0.0)
        (recon.square().mean() + sum(terms.values())).backward()
        found = dict(model.named_parameters())
        assert all(found[name].grad is not None and found[name].grad.any() for name in own), own
    with pytest.raises(ConfigError, match="rotary positions need a head width that is a multiple of 4, got 2"):
        tokenizer(encoder={**SMALL, "heads": 8, "rotary": "mixed"})


def test_the_reconstruction_s_loss_is_of_pixels_in_0_1(images: Tensor) -> None:
    for kind, error in (("mse", F.mse_loss), ("l1", F.l1_loss)):
        model = tokenizer(reconstruction=kind)
        recon, _, terms = model.reconstruct((images,), 0.0)
        assert recon.min() < 0 and recon.max() > 1, "not clamped, so that a gradient is left"
        torch.testing.assert_close(terms["loss_reconstruction"], error(recon, images))
        assert model.decoder.last_weight is model.decoder.conv.weight


def test_other_image_sizes_resample_the_positions() -> None:
    model, large = tokenizer(), torch.rand(2, 3, 32, 24)
    ids = model.encode(large)
    assert ids.shape == (2, 6) and model.decode(ids, size=(32, 24)).shape == large.shape
    assert model.decode(ids).shape == (2, 3, 16, 16)
    assert all(value.isfinite() for value in model.losses((large,), 0.0).values())
    assert model.encoder.vit.table(4, 4) is model.encoder.vit.positions


@pytest.mark.parametrize("make", [tokenizer, legacy])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 25}, "steps: expected none, because this decoder is a single forward pass, got 25"),
        ({"guidance": 2.0}, "guidance: expected 1, because this decoder is deterministic, got 2.0"),
        ({"keep": 3}, "keep: these tokens have no order, expected all 6, got 3"),
        ({"size": 18}, "multiples of 4 .*got 18x18"),
    ],
)
def test_decoding_rejects_what_it_cannot_do(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make().decode(torch.zeros(2, 6, dtype=torch.int64), **options)


@pytest.mark.parametrize("make", [tokenizer, legacy])
def test_images_and_ids_are_checked(make: Any) -> None:
    model = make()
    for shape, message in (((1, 1, 16, 16), "expected images of shape"), ((1, 3, 15, 16), "multiples of 4")):
        with pytest.raises(InputError, match=message):
            model.encode(torch.zeros(shape))
        with pytest.raises(InputError, match=message):
            model.reconstruct((torch.zeros(shape),), 0.0)
    for tokens, message in (
        (torch.full((1, 6), 9), r"expected ids in 0\.\.8, got 9"),
        (torch.zeros(1, 5, dtype=torch.int64), r"expected ids of shape \(B, 6\)"),
        (torch.zeros(1, 6), "of torch.float32"),
    ):
        with pytest.raises(InputError, match=message):
            model.decode(tokens)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("titok", {"decoder": {"patch": 5}}, "model.decoder.patch: 5 does not divide image_size 256"),
        ("titok", {"encoder": {"heads": 5}}, "model.encoder.heads: 5 does not divide dim 768"),
        ("titok", {"num_tokens": 6, "bottleneck": {"name": "softvq"}}, "model.bottleneck.num_codebooks: 4 does not"),
        ("titok", {"encoder": {"size": "huge"}}, "model.encoder.size: expected base or large or small"),
        ("titok_legacy", {"pixels": {"width": 48}}, "model.pixels.width: expected a multiple of 32, got 48"),
        ("titok_legacy", {"pixels": {"mult": []}}, "model.pixels.mult: expected at least one level"),
        ("titok_legacy", {"bottleneck": {"name": "kl"}}, "model.bottleneck.name: expected vq"),
    ],
)
def test_contradictions_are_one_line(name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as error:
        build_model_config({"name": name, **keys})
    assert "\n" not in str(error.value)


# The two-stage form.


def test_legacy_order_is_a_permutation_of_the_weights_of_one_linear_layer(images: Tensor) -> None:
    model, length, dim = legacy(), 6, 16
    states = model.encoder(images)
    assert not torch.allclose(legacy_order(states), states)
    # One matrix of all states: the projection of every token, its columns put where memory has them.
    projection = torch.block_diag(*[model.bottleneck.proj.weight] * length)
    places = torch.arange(length * dim).view(dim, length).T.flatten()
    permuted = torch.empty_like(projection)
    permuted[:, places] = projection
    expected = (states.flatten(1) @ permuted.T).unflatten(1, (length, -1)) + model.bottleneck.proj.bias
    torch.testing.assert_close(model.bottleneck.proj(model.states(images)), expected)


def test_legacy_order_of_as_many_states_as_channels_is_a_transposition() -> None:
    square, single = torch.randn(2, 5, 5), torch.randn(2, 1, 7)
    assert torch.equal(legacy_order(square), square.transpose(1, 2).transpose(1, 2).reshape(2, 5, 5).transpose(1, 2))
    assert torch.equal(legacy_order(legacy_order(square)), square)
    assert torch.equal(legacy_order(single), single)
    states = torch.randn(2, 6, 16)
    assert torch.equal(legacy_order(states).transpose(1, 2).reshape(2, 6, 16), states)


def test_a_block_that_changes_width_forgets_its_input() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 64, 4, 4)
    same, other = PixelBlock(64, 64), PixelBlock(64, 32)
    assert same.shortcut is None and other.shortcut is not None and other.shortcut.weight.shape == (32, 32, 1, 1)
    nn.init.zeros_(same.conv2.weight)
    nn.init.zeros_(other.conv2.weight)
    assert torch.equal(same(x), x) and not other(x).any()


def test_a_level_doubles_after_its_blocks() -> None:
    torch.manual_seed(0)
    level, x = PixelLevel(32, 64, 2, doubles=True), torch.randn(1, 32, 3, 3)
    narrow = level.blocks[1](level.blocks[0](x))
    assert level.upsample is not None
    torch.testing.assert_close(level(x), level.upsample(narrow.repeat_interleave(2, 2).repeat_interleave(2, 3)))


def test_certain_logits_decode_their_codes() -> None:
    decoder = legacy().decoder
    codes = torch.randint(0, 11, (2, 16), generator=torch.Generator().manual_seed(3))
    mixed = decoder.expected_codes(1e4 * F.one_hot(codes, 11).float(), (4, 4))
    assert decoder.codebook is not None
    torch.testing.assert_close(mixed, decoder.codebook[codes].transpose(1, 2).unflatten(2, (4, 4)))


def test_stage_one_trains_on_codes_and_decodes_no_pixels(images: Tensor) -> None:
    model = legacy(stage="train").train()
    codes = torch.randint(0, 11, (3, 16))
    terms = model.losses((images, None, codes), 0.0)
    entries = model.bottleneck.embed(model.encode(images))
    logits = model.decoder.logits(entries, (4, 4))
    expected = -logits.log_softmax(-1).gather(2, codes[..., None]).mean()
    torch.testing.assert_close(terms["loss_code"], expected, atol=1e-5, rtol=1e-5)
    sum(value for name, value in terms.items() if name.startswith("loss_")).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []
    with pytest.raises(InputError, match="stage=train: these weights predict codes"):
        model.decode(model.encode(images))
    for wrong, found in ((None, "none"), (codes[:, 1:], r"\(3, 15\)"), (codes.float(), "of torch.float32")):
        with pytest.raises(InputError, match=rf"codes of shape \(3, 16\), got .*{found}") as error:
            model.losses((images, None, wrong), 0.0)
        assert "\n" not in str(error.value)


def test_stage_two_trains_the_decoders_alone(images: Tensor) -> None:
    model = legacy().train()
    assert not model.encoder.training and not model.bottleneck.training and model.decoder.training
    recon, _, terms = model.reconstruct((images,), 0.0)
    assert recon.shape == images.shape and terms.keys() == {"loss_reconstruction"}
    terms["loss_reconstruction"].backward()
    reached = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert reached == {"decoder"}
    assert all(weight.grad is not None for weight in model.decoder.parameters())


def test_a_pixel_decoder_of_other_patches_is_reported(images: Tensor) -> None:
    model = legacy(pixels={**PIXELS, "mult": [1, 2]})
    assert model.decode(model.encode(images)).shape == (3, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"^pixels\.mult: 2 levels decode 8x8 of 16x16 images") as error:
        model.reconstruct((images,), 0.0)
    assert "\n" not in str(error.value)
