"""MAETok: masking, inputs of the losses, stage two, image sizes, decoding, and the published sizes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tok1d.config.optim import OptimConfig
from tok1d.config.registry import build_model_config
from tok1d.errors import ConfigError, InputError, WeightsError
from tok1d.losses.hog import hog
from tok1d.tokenizers.auxiliary import AuxiliaryDecoder
from tok1d.tokenizers.maetok import MAETok, MAETokConfig
from tok1d.tokenizers.masking import sample_mask
from tok1d.train.optim import Optimizers
from tok1d.train.players import Progress
from tok1d.zoo.store import build_model
from tok1d.zoo.transfer import transfer

SMALL = {"patch": 4, "dim": 16, "depth": 2, "heads": 2, "layer_scale": 0.5}
HOG = {"target": "hog", "cell": 2, "depth": 1}
TEACHER = {"target": "teacher:somebody", "dim": 5, "depth": 1}
EVERY_TARGET = [HOG, TEACHER, {"target": "pixels", "depth": 0}, {"target": "text", "dim": 11, "depth": 1}]


def config(**keys: Any) -> MAETokConfig:
    mapping: dict[str, Any] = {"name": "maetok", "image_size": 16, "num_tokens": 6, "token_dim": 4, **keys}
    mapping["encoder"] = {**SMALL, **keys.get("encoder", {})}
    mapping["decoder"] = {**SMALL, "absolute": False, **keys.get("decoder", {})}
    return build_model_config(mapping)


def tokenizer(**keys: Any) -> MAETok:
    torch.manual_seed(0)
    model = build_model(config(**keys))
    assert isinstance(model, MAETok)
    for part in model.auxiliary:
        assert isinstance(part, AuxiliaryDecoder)
        part.teacher = lambda images: torch.linspace(-1, 1, 4 * 5).view(1, 4, 5).expand(len(images), -1, -1)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def change_patch(images: Tensor, patch: int) -> Tensor:
    """Other pixels in one of the 4 x 4 patches."""
    changed, (row, column) = images.clone(), divmod(patch, 4)
    changed[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.9
    return changed


@pytest.mark.parametrize("num_tokens", [6, 0])
@pytest.mark.parametrize("rotary", ["mixed", "axial", "none"])
def test_a_masked_patch_reaches_no_latent(images: Tensor, rotary: str, num_tokens: int) -> None:
    model = tokenizer(encoder={"rotary": rotary}, num_tokens=num_tokens).train()
    mask = sample_mask(torch.full((3,), 0.5), 16)
    mask[:, 5], mask[:, 6] = True, False
    before = model.reconstruct((images,), 0.0, mask=mask)[1]
    assert torch.equal(model.reconstruct((change_patch(images, 5),), 0.0, mask=mask)[1], before)
    assert not torch.allclose(model.reconstruct((change_patch(images, 6),), 0.0, mask=mask)[1], before)


def test_a_masked_patch_still_has_its_place(images: Tensor) -> None:
    model = tokenizer(num_tokens=0)
    states = model.encoder(images, torch.ones(3, 16, dtype=torch.bool))
    assert torch.equal(states[0], states[1]) and not torch.allclose(states[0, 0], states[0, 1])


def test_evaluation_never_masks(images: Tensor) -> None:
    model = tokenizer(auxiliary=[HOG]).eval()
    terms = model.losses((images,), 0.0)
    assert "mask_ratio" not in terms and terms["loss_hog"].item() == 0
    torch.testing.assert_close(model.reconstruct((images,), 0.0)[1], model.encode(images))
    model.train()
    assert 7 / 16 <= model.losses((images,), 0.0)["mask_ratio"].item() <= 10 / 16


@pytest.mark.parametrize("aux_loss_on", ["masked", "all"])
def test_the_auxiliary_loss_ignores_visible_patches(images: Tensor, aux_loss_on: str) -> None:
    model = tokenizer(auxiliary=[{**TEACHER, "norm": "none"}], aux_loss_on=aux_loss_on)
    (decoder,) = model.auxiliary
    assert isinstance(decoder, AuxiliaryDecoder)
    mask, features = sample_mask(torch.full((3,), 0.5), 16), torch.randn(3, 16, 5)

    def loss(features: Tensor) -> Tensor:
        decoder.teacher = lambda images: features
        return model.reconstruct((images,), 0.0, mask=mask)[2]["loss_somebody"]

    shown, hidden = (features + 3 * which[..., None] for which in (~mask, mask))
    assert torch.equal(loss(shown), loss(features)) == (aux_loss_on == "masked")
    assert not torch.allclose(loss(hidden), loss(features))


def test_targets_are_of_the_whole_image_on_the_patch_grid(images: Tensor) -> None:
    decoders = dict(zip(("hog", "teacher", "pixels", "text"), tokenizer(auxiliary=EVERY_TARGET).auxiliary))
    target = {name: decoders[name].target(images, (4, 4)) for name in ("hog", "teacher", "pixels")}
    torch.testing.assert_close(target["hog"], hog(images, 4, 2))
    assert target["teacher"].shape == (3, 16, 5)  # from the teacher's 2 x 2
    torch.testing.assert_close(target["teacher"].mean(-1), torch.zeros(3, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(target["pixels"][:, 6].view(3, 3, 4, 4), 2 * images[..., 4:8, 8:12] - 1)


@pytest.mark.parametrize("num_tokens", [6, 0])
def test_a_gradient_reaches_every_weight(images: Tensor, num_tokens: int) -> None:
    model = tokenizer(auxiliary=EVERY_TARGET, num_tokens=num_tokens, head="conv").train()
    captions = torch.tensor([[1, 2, -1], [4, -1, -1], [10, 0, 1]])
    terms = model.losses((images, torch.zeros(3), captions), 0.0)
    losses = {name: value for name, value in terms.items() if name.startswith("loss_")}
    assert losses.keys() == {"loss_reconstruction", "loss_hog", "loss_somebody", "loss_pixels", "loss_text"}
    sum(losses.values()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_captions_must_be_there(images: Tensor) -> None:
    with pytest.raises(InputError, match="expected batches of"):
        tokenizer(auxiliary=EVERY_TARGET[3:]).train().losses((images, torch.zeros(3)), 0.0)


def test_a_teacher_of_another_width_is_reported(images: Tensor) -> None:
    model = tokenizer(auxiliary=[{**TEACHER, "dim": 6}]).train()
    with pytest.raises(ConfigError, match=r"dim: expected 5, the feature width of .*, got 6"):
        model.losses((images,), 0.0)


@pytest.mark.parametrize("kind", ["plain", "kl", "softvq"])
def test_encoding_and_decoding_are_deterministic(images: Tensor, kind: str) -> None:
    bottleneck = {"name": kind, **({"size": 9, "num_codebooks": 2} if kind == "softvq" else {})}
    model = tokenizer(bottleneck=bottleneck).eval()
    tokens = model.encode(images)
    assert tokens.shape == (3, 6, 4) and torch.equal(tokens, model.encode(images))
    assert model.spec.dim == 4 and model.spec.vocab_size is None and not model.spec.ordered
    decoded = model.decode(tokens, keep=6)
    assert decoded.shape == images.shape and torch.equal(decoded, model.decode(tokens))
    if kind == "softvq":
        assert (tokens.norm(dim=-1) <= 1).all()


def test_vector_quantised_tokens_are_ids(images: Tensor) -> None:
    model = tokenizer(bottleneck={"name": "vq", "size": 9}).eval()
    ids = model.encode(images)
    assert ids.shape == (3, 6) and ids.dtype == torch.int64 and model.spec.vocab_size == 9
    recon, entries, _ = model.reconstruct((images,), 0.0)
    torch.testing.assert_close(model.decode(ids), recon.clamp(0, 1))
    torch.testing.assert_close(model.bottleneck.embed(ids), entries)
    for wrong, message in ((ids.float(), "expected ids of shape"), (ids + 9, r"expected ids in 0\.\.8")):
        with pytest.raises(InputError, match=message):
            model.decode(wrong)


def test_the_same_number_of_tokens_serves_other_image_sizes(images: Tensor) -> None:
    model, large = tokenizer(auxiliary=[HOG, EVERY_TARGET[2]]).train(), torch.rand(2, 3, 32, 24)
    tokens = model.encode(large)
    assert tokens.shape == (2, 6, 4)
    assert model.decode(tokens, size=(32, 24)).shape == large.shape
    assert model.decode(tokens).shape == (2, 3, 16, 16)
    assert all(value.isfinite() for value in model.losses((large,), 0.0).values())
    # At the size of the training, nothing is resampled.
    resampled = model.encoder.vit.table(4, 4)
    assert resampled is model.encoder.vit.positions


@pytest.mark.parametrize("positions", [{"absolute": True, "rotary": "none"}, {"absolute": False, "rotary": "mixed"}])
def test_the_same_128_tokens_serve_256_and_512_pixels(positions: dict[str, Any]) -> None:
    sizes = {"patch": 16, "dim": 8, "depth": 1, "heads": 2, **positions}
    model = tokenizer(image_size=256, num_tokens=128, token_dim=32, encoder=sizes, decoder=sizes).train()
    coarse = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    for size in (256, 512):
        images = F.interpolate(coarse, size=(size, size), mode="nearest")
        tokens = model.encode(images)
        assert tokens.shape == (1, model.spec.length, 32) == (1, 128, 32)
        assert model.decode(tokens, size=size).shape == images.shape
        losses = model.losses((images,), 0.0)
        losses["loss_reconstruction"].backward()
        assert model.encoder.queries is not None and model.encoder.queries.grad is not None, "both train one set"
        assert model.encoder.queries.grad.abs().sum() > 0
        model.zero_grad()


def test_the_loss_of_a_caption_is_that_of_its_words(images: Tensor) -> None:
    """Of the whole image, whatever is masked; ids and their weighted bag alike."""
    model = tokenizer(auxiliary=[{**EVERY_TARGET[3], "weight": 2.0}])
    (decoder,) = model.auxiliary
    ids, weights = torch.tensor([[1, 2, -1], [4, 4, -1], [-1, -1, -1]]), torch.linspace(0.1, 2, 11)
    bag = torch.zeros(3, 11)
    bag[0, [1, 2]], bag[1, 4] = weights[[1, 2]], weights[4]
    for mask in (sample_mask(torch.full((3,), 0.5), 16), torch.zeros(3, 16, dtype=torch.bool)):
        _, latents, terms = model.reconstruct((images, torch.zeros(3), ids), 0.0, mask=mask)
        log_p = decoder(latents, (4, 4)).log_softmax(-1)
        plain = -((log_p[0, 1] + log_p[0, 2]) / 2 + log_p[1, 4]) * 2 / 3
        torch.testing.assert_close(terms["loss_text"], plain)
        weighted = model.reconstruct((images, torch.zeros(3), bag), 0.0, mask=mask)[2]["loss_text"]
        share = weights[1] / (weights[1] + weights[2])
        expected = -(share * log_p[0, 1] + (1 - share) * log_p[0, 2] + log_p[1, 4]) * 2 / 3
        torch.testing.assert_close(weighted, expected)


def test_patches_as_tokens(images: Tensor) -> None:
    model = tokenizer(num_tokens=0).eval()
    assert model.spec.length == 16 and model.encode(images).shape == (3, 16, 4)
    large = model.encode(torch.rand(1, 3, 16, 32))
    assert model.decode(large, size=(16, 32)).shape == (1, 3, 16, 32)
    with pytest.raises(InputError, match=r"expected tokens of shape \(B, 16, 4\) for 16x16 pixels"):
        model.decode(large)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 25}, "steps: expected none, because this decoder is a single forward pass, got 25"),
        ({"guidance": 2.0}, "guidance: expected 1, because this decoder is deterministic, got 2.0"),
        ({"keep": 3}, "keep: these tokens have no order, expected all 6, got 3"),
        ({"size": 18}, "multiples of 4 .*got 18x18"),
    ],
)
def test_decoding_rejects_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer().decode(torch.zeros(2, 6, 4), **options)


def test_images_are_checked() -> None:
    for shape, message in (((1, 1, 16, 16), "expected images of shape"), ((1, 3, 15, 16), "multiples of 4")):
        with pytest.raises(InputError, match=message):
            tokenizer().encode(torch.zeros(shape))


def test_stage_two_trains_the_pixel_decoder_alone(images: Tensor) -> None:
    first = tokenizer(auxiliary=[HOG])
    second = MAETok(replace(first.config, stage="finetune"))
    assert transfer(first, second) == ["auxiliary parts of it are left out"]
    assert not len(second.auxiliary)
    before = {name: value.clone() for name, value in second.train().state_dict().items()}
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in before.items())
    (optimizer,) = Optimizers(second, OptimConfig(steps=1, batch_size=3, lr=1e-2, weight_decay=0.1))
    for _ in range(2):
        terms = second.losses((images,), 0.25)
        assert terms["mask_ratio"].item() == pytest.approx(8 / 16)  # ceil(0.45 * 16)
        assert [name for name in terms if name.startswith("loss_")] == ["loss_reconstruction"]
        terms["loss_reconstruction"].backward()
        optimizer.step()
    moved = {name.split(".")[0] for name, value in second.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"decoder"}


def test_stage_two_moves_no_codebook(images: Tensor) -> None:
    """Neither by gradients nor by the revival of unused codes."""
    model = tokenizer(stage="finetune", bottleneck={"name": "vq", "size": 8, "revival": True}).train()
    before = {name: value.clone() for name, value in model.bottleneck.state_dict().items()}
    for _ in range(3):
        model.losses((images,), 0.5)
    assert all(torch.equal(value, model.bottleneck.state_dict()[name]) for name, value in before.items())


def test_stage_two_ends_clean() -> None:
    model = tokenizer(stage="finetune").train()
    masks = [model.training_mask(torch.zeros(2, 3, 16, 16), Progress(step, 20).fraction) for step in range(20)]
    assert [mask.sum(1).unique().tolist() for mask in masks[:1] + masks[-2:]] == [[10], [1], [0]]


def test_masking_fades_out_over_stage_two() -> None:
    finetune = config(stage="finetune", finetune={"ratio": 0.6, "until": 0.5}).finetune
    assert [finetune.at(progress) for progress in (0, 0.25, 0.5, 1)] == pytest.approx([0.6, 0.3, 0, 0])
    model = MAETok(config(stage="finetune"))
    model.train()
    assert not model.training_mask(torch.zeros(2, 3, 16, 16), 1.0).any()


def test_stage_two_needs_a_model_of_its_own_sizes() -> None:
    with pytest.raises(WeightsError, match="weights of another shape for this model: bottleneck"):
        transfer(tokenizer(), tokenizer(stage="finetune", token_dim=5))


def test_a_teacher_that_the_projected_tokens_equal_aligns_perfectly(images: Tensor) -> None:
    model = tokenizer(alignment={"teacher": "somebody", "dim": 4, "hidden": 8})
    assert model.alignment is not None
    model.alignment.projector = torch.nn.Identity()
    tokens = model.encode(images)
    model.alignment.teacher = lambda images: tokens.repeat_interleave(2, 1)
    assert model.alignment.loss(tokens, images).item() == pytest.approx(-0.1)
    assert "loss_align" in model.eval().losses((images,), 0.0)
    assert MAETok(replace(model.config, stage="finetune")).alignment is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"decoder": {"patch": 5}}, "model.decoder.patch: 5 does not divide image_size 16"),
        ({"num_tokens": 0, "decoder": {"patch": 8}}, "model.decoder.patch: num_tokens=0 needs the encoder's 4"),
        ({"head": "conv", "decoder": {"patch": 1}}, "model.decoder.patch: head=conv upsamples"),
        ({"bottleneck": {"name": "softvq"}}, "model.bottleneck.num_codebooks: 4 does not divide 6 tokens"),
        ({"auxiliary": [{"target": "hog"}]}, r"model.auxiliary\[0\].cell: 8 does not divide encoder.patch 4"),
        ({"auxiliary": [HOG, HOG]}, r"model.auxiliary\[1\].target: expected different targets, got hog twice"),
        ({"auxiliary": [HOG], "mask": {"low": 0, "high": 0}}, "model.aux_loss_on: mask.high=0 masks no patches"),
        ({"stage": "finetune", "mask": {"low": 0, "high": 0}}, "model.finetune.ratio: .* no mask token, expected 0"),
        (
            {"auxiliary": [{"target": "dino"}]},
            r"model.auxiliary\[0\].target: expected hog, pixels, text or teacher:NAME",
        ),
        ({"auxiliary": [{"target": "text"}]}, r"model.auxiliary\[0\].dim: text needs the size of the vocabulary"),
        ({"decoder": {"rotary": "none"}}, "model.decoder.absolute: patches need positions"),
        ({"encoder": {"heads": 3}}, "model.encoder.heads: 3 does not divide dim 16"),
        ({"alignment": {"teacher": "somebody"}}, "model.alignment.dim: alignment needs the width"),
    ],
)
def test_contradictions_are_one_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as error:
        config(**keys)
    assert "\n" not in str(error.value)


def count(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def unused(model: MAETok) -> int:
    """What a published file counts and no forward pass reads: the decoder's patches, and its table beside rotations."""
    decoder = model.config.decoder
    table = (1 + (model.config.image_size // decoder.patch) ** 2) * decoder.dim
    return decoder.dim * (3 * decoder.patch**2 + 1) + (0 if decoder.absolute else table)


def on_meta(**keys: Any) -> MAETok:
    with torch.device("meta"):
        return MAETok(build_model_config({"name": "maetok", **keys}))


def test_published_size_of_maetok() -> None:
    model = on_meta()
    assert count(model) + unused(model) == 172_681_760
    assert count(model.encoder) == 86_069_760
    assert count(model.decoder) - count(model.decoder.token_embed) + unused(model) == 86_562_048
    large = on_meta(image_size=512)
    assert count(large) + unused(large) == 173_861_408


@pytest.mark.parametrize(
    ("encoder", "decoder", "tokens", "size"),
    [
        ("small", "small", (64, 32), 44_839_200),
        ("base", "base", (64, 32), 173_563_680),
        ("base", "large", (64, 32), 391_334_432),
        ("large", "large", (64, 32), 608_924_448),
        ("large", "large", (32, 64), 609_940_288),
    ],
)
def test_published_sizes_of_softvq(encoder: str, decoder: str, tokens: tuple[int, int], size: int) -> None:
    model = on_meta(
        num_tokens=tokens[0],
        token_dim=tokens[1],
        bottleneck={"name": "softvq"},
        encoder={"size": encoder, "rotary": "none"},
        decoder={"size": decoder, "rotary": "none", "absolute": True},
        mask={"low": 0, "high": 0},
    )
    assert count(model) + unused(model) == size
