"""The Semanticist tokenizer end to end at a tiny size: prefixes, guidance, seeds, losses, bad input."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.diffusion.ddpm import ddim, respaced_steps
from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.solver import randn_from
from tok1d.errors import ConfigError, InputError
from tok1d.tokenizers.bottlenecks import VQConfig
from tok1d.tokenizers.latent_space import Pixels
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.semanticist import FlowConfig, NestedConfig, Semanticist, SemanticistConfig
from tok1d.tokenizers.token_dit import DecoderConfig

K, D, STEPS = 4, 3, 3


def config(objective: Any = "flow", **changes: Any) -> SemanticistConfig:
    small = SemanticistConfig(
        image_size=8,
        channels=1,
        num_tokens=K,
        token_dim=D,
        encoder=EncoderConfig(patch=4, dim=12, depth=2, heads=2, drop_path=0.0),
        decoder=DecoderConfig(patch=4, dim=12, depth=2, heads=2),
        objective=objective,
        steps=STEPS,
    )
    return replace(small, **changes)


def tokenizer(objective: str = "flow", **changes: Any) -> Semanticist:
    torch.manual_seed(0)
    model = Semanticist(config(objective, **changes)).eval()
    for parameter in model.parameters():  # away from the zeros of adaLN-Zero
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=["flow", "ddpm"])
def model(request: pytest.FixtureRequest) -> Semanticist:
    return tokenizer(request.param)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(3, K, D, generator=torch.Generator().manual_seed(2))


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(model: Semanticist, tokens: Tensor, **options: Any) -> Tensor:
    """Decoded latents, not clamped, from noise that depends on the seed alone."""
    options.setdefault("sampler", "euler" if model.config.objective == "flow" else "ancestral")
    randn = randn_from(seeded(options.pop("seed", 5)))
    start = randn(torch.empty(len(tokens), *model.latent_shape))
    guidance = options.pop("guidance", 1.0)
    if not isinstance(guidance, Guidance):
        guidance = Guidance(guidance)
    return model.decode_latents(tokens, start, randn, guidance=guidance, **options)


def with_null_tail(model: Semanticist, tokens: Tensor, keep: int) -> Tensor:
    null = model.decoder.null_tokens.detach().expand(len(tokens), -1, -1)
    return torch.cat([tokens[:, :keep], null[:, keep:]], dim=1)


def test_tokens_are_standardised(images: Tensor) -> None:
    model = tokenizer()
    tokens = model.encode(images)
    assert tokens.shape == (3, K, D) == (3, model.spec.length, model.spec.dim) and model.spec.ordered
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(3, K), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.std(-1), torch.ones(3, K))


def test_tokens_are_standardised_in_float32_under_autocast(images: Tensor) -> None:
    model = tokenizer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = model.encode(images)
        loss = torch.stack([*model.losses((images, torch.zeros(3)), progress=1.0).values()]).sum()
    assert tokens.dtype == torch.float32 and loss.isfinite()
    torch.testing.assert_close(tokens.std(-1), torch.ones(3, K), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep", range(K + 1))
def test_a_prefix_equals_null_padding_and_truncation(model: Semanticist, tokens: Tensor, keep: int) -> None:
    kept = latents(model, tokens, keep=keep)
    torch.testing.assert_close(latents(model, with_null_tail(model, tokens, keep)), kept)
    torch.testing.assert_close(latents(model, tokens[:, :keep]), kept)
    torch.testing.assert_close(latents(model, tokens, keep=torch.full((3,), keep)), kept)
    if keep:
        assert not torch.allclose(latents(model, tokens, keep=keep - 1), kept)


@pytest.mark.parametrize("guidance", [1.0, 0.5, 2.0])
def test_mixed_prefixes_equal_separate_calls(model: Semanticist, tokens: Tensor, guidance: float) -> None:
    mixed = latents(model, tokens, keep=torch.tensor([0, 3, 1]), guidance=guidance)
    for row, keep in enumerate([0, 3, 1]):
        alone = latents(model, tokens, keep=keep, guidance=guidance)[row]
        torch.testing.assert_close(mixed[row], alone, atol=1e-4, rtol=1e-4)
        others = (latents(model, tokens, keep=other, guidance=guidance)[row] for other in (0, 1, 3) if other != keep)
        assert not any(torch.allclose(mixed[row], other, atol=1e-3) for other in others)


def test_all_tokens_are_kept_by_default(model: Semanticist, tokens: Tensor) -> None:
    torch.testing.assert_close(latents(model, tokens), latents(model, tokens, keep=K))


def test_the_order_of_kept_tokens_does_not_matter(model: Semanticist, tokens: Tensor) -> None:
    swapped = tokens[:, [2, 0, 1, 3]]
    torch.testing.assert_close(latents(model, swapped), latents(model, tokens), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(latents(model, swapped, keep=3), latents(model, tokens, keep=3), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(latents(model, swapped, keep=2), latents(model, tokens, keep=2), atol=1e-3)


def test_without_tokens_only_the_noise_decides(model: Semanticist, tokens: Tensor) -> None:
    none = latents(model, tokens, keep=0)
    assert torch.equal(latents(model, torch.full_like(tokens, torch.nan), keep=0), none)
    assert torch.equal(latents(model, tokens, keep=0, guidance=3.0).isfinite(), torch.ones_like(none, dtype=torch.bool))
    torch.testing.assert_close(latents(model, tokens, keep=0, guidance=3.0), none, atol=1e-4, rtol=1e-4)


def test_seeds_decide_the_images_and_the_global_generator_is_left_alone(model: Semanticist, tokens: Tensor) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again = (model.decode(tokens, generator=seeded()) for _ in range(2))
    other = model.decode(tokens, generator=seeded(6))
    by_default = [model.decode(tokens) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and torch.equal(*by_default) and not torch.equal(first, other)
    assert first.shape == (3, 1, 8, 8) and first.min() >= 0 and first.max() <= 1


def test_decode_is_the_clamped_image_of_the_latents(model: Semanticist, tokens: Tensor) -> None:
    expected = ((latents(model, tokens, keep=2) + 1) / 2).clamp(0, 1)
    assert torch.equal(model.decode(tokens, keep=2, generator=seeded()), expected)


def count_calls(model: Semanticist) -> list[int]:
    """Batch sizes the decoder was called with, appended to as it runs."""
    sizes: list[int] = []
    model.decoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    return sizes


def test_guidance_of_one_is_none_and_costs_one_call_a_step(model: Semanticist, tokens: Tensor) -> None:
    plain = latents(model, tokens)
    sizes = count_calls(model)
    assert torch.equal(latents(model, tokens, guidance=1.0), plain)
    assert sizes == [3] * STEPS
    sizes.clear()
    guided = latents(model, tokens, guidance=2.0)
    assert sizes == [6] * STEPS, "both predictions in one call"
    assert not torch.allclose(guided, plain, atol=1e-3)


def test_guidance_of_zero_is_the_unconditional_model(model: Semanticist, tokens: Tensor) -> None:
    sampler = "euler" if model.config.objective == "flow" else "ddim"  # the variance would stay conditional
    zero, none = latents(model, tokens, guidance=0.0, sampler=sampler), latents(model, tokens, keep=0, sampler=sampler)
    torch.testing.assert_close(zero, none, atol=1e-5 * none.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_guidance_by_hand_at_one_point(model: Semanticist, tokens: Tensor, scale: float) -> None:
    x = torch.randn(3, *model.latent_shape, generator=seeded())
    t = torch.full((3,), 700) if model.config.objective == "ddpm" else torch.tensor([0.3])
    with torch.no_grad():
        yes, no = (model.decoder(x, t, with_null_tail(model, tokens, keep)) for keep in (2, 0))
        field = model.field(tokens, 2, Guidance(scale))(x, t)
    mixed = no[:, :1] + scale * (yes[:, :1] - no[:, :1])
    if model.config.objective == "ddpm":
        torch.testing.assert_close(field, torch.cat([mixed, yes[:, 1:]], dim=1), atol=1e-4, rtol=1e-4)
    else:  # a data prediction on the linear path
        torch.testing.assert_close(field, (mixed - x) / 0.7, atol=1e-4, rtol=1e-4)


def test_guidance_acts_in_its_interval_of_data_time(model: Semanticist, tokens: Tensor) -> None:
    sizes = count_calls(model)
    latents(model, tokens, guidance=Guidance(2.0, interval=(0.0, 0.4)))
    assert sizes == ([6, 6, 3] if model.config.objective == "flow" else [6, 3, 3])
    sizes.clear()
    latents(model, tokens, guidance=Guidance(2.0, interval=(0.9, 1.0)))
    assert sizes == ([3, 3, 3] if model.config.objective == "flow" else [3, 3, 6])


def test_the_published_decoder_takes_250_ancestral_steps(tokens: Tensor) -> None:
    """The release's "250": every step of the respaced chain once, from the noisiest, all with its original index."""
    model, times = tokenizer("ddpm"), []
    model.decoder.register_forward_pre_hook(lambda module, inputs: times.append(int(inputs[1][0])))
    assert SemanticistConfig().steps == 250 and model.sampler() == "ancestral"
    by_default = latents(model, tokens, steps=250)
    assert times == respaced_steps(1000, "250")[::-1] and times[0] == 999 and times[-1] == 0
    assert torch.equal(by_default, latents(model, tokens, steps=250, sampler="ancestral"))


@pytest.mark.parametrize("steps", [2, 10])
def test_ddim_uses_no_noise_after_its_start(tokens: Tensor, steps: int) -> None:
    model, start = tokenizer("ddpm"), torch.randn(3, 1, 8, 8, generator=seeded())
    sizes = count_calls(model)

    def no_noise(x: Tensor) -> Tensor:
        raise AssertionError("DDIM is deterministic")

    out = model.decode_latents(tokens, start, no_noise, steps=steps, sampler="ddim")
    assert sizes == [3] * steps and out.isfinite().all()
    expected = ddim(model.field(tokens, None, Guidance()), start, model.chain.respace(steps))
    torch.testing.assert_close(out, expected.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tokens_of_a_cache_are_cast_to_the_weights(model: Semanticist, tokens: Tensor, dtype: torch.dtype) -> None:
    stored = tokens.to(dtype)
    assert torch.equal(model.decode(stored, keep=2, guidance=2.0), model.decode(stored.float(), keep=2, guidance=2.0))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_with_its_own_generator_an_image_does_not_depend_on_its_batch(
    model: Semanticist, tokens: Tensor, guidance: float
) -> None:
    def decode(rows: list[int]) -> Tensor:
        return model.decode(tokens[rows], guidance=guidance, generator=[seeded(row) for row in rows])

    together = decode([0, 1, 2])
    for row in range(3):
        torch.testing.assert_close(decode([row])[0], together[row], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(decode([2, 0]), together[[2, 0]], atol=1e-4, rtol=1e-4)
    alone = model.decode(tokens[:1], guidance=guidance, generator=seeded(0))
    torch.testing.assert_close(alone[0], together[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [4, 8, 12, (4, 8), (16, 4)])
def test_any_size_is_encoded_and_decoded(model: Semanticist, tokens: Tensor, size: Any) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.rand(3, 1, height, width, generator=seeded())
    encoded = model.encode(images)
    assert encoded.shape == (3, K, D) and encoded.isfinite().all()
    out = model.decode(encoded, size=size, guidance=2.0, generator=seeded())
    assert out.shape == images.shape and out.isfinite().all()
    assert torch.equal(model.decode(encoded, size=(height, width), guidance=2.0, generator=seeded()), out)
    losses = model.losses((images, torch.zeros(3)), progress=1.0)
    assert all(loss.isfinite() for loss in losses.values())
    assert torch.equal(model.decode(tokens, size=8), model.decode(tokens)), "the native size changes nothing"


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["data", "noise", "velocity"])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_every_flow_decodes_to_finite_images(tokens: Tensor, path: Any, prediction: Any, sampler: str) -> None:
    model = tokenizer(flow=FlowConfig(path=path, prediction=prediction))
    for steps in (1, 2, 7):
        assert model.decode(tokens, steps=steps, guidance=1.5, sampler=sampler).isfinite().all()


@pytest.mark.parametrize("prediction", ["data", "noise", "velocity"])
def test_a_decoder_with_the_exact_image_returns_it(images: Tensor, tokens: Tensor, prediction: Any) -> None:
    model = tokenizer(flow=FlowConfig(prediction=prediction))
    clean, path = images * 2 - 1, model.objective.path

    def perfect(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        noise = path.to_noise(clean, "data", x, t)
        return {"data": clean, "noise": noise, "velocity": path.velocity(clean, noise, t)}[prediction]

    model.decoder.forward = perfect  # type: ignore[method-assign]
    for sampler in ("euler", "heun"):
        torch.testing.assert_close(model.decode(tokens, steps=5, sampler=sampler), images, atol=0.02, rtol=0)


def test_temperature_scales_the_start_of_a_flow(tokens: Tensor) -> None:
    cold = tokenizer(flow=FlowConfig(temperature=0.3))
    start = torch.randn(3, *cold.latent_shape, generator=seeded())
    expected = ((cold.decode_latents(tokens, 0.3 * start, torch.randn_like) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(cold.decode(tokens, generator=seeded()), expected)
    still = tokenizer(flow=FlowConfig(temperature=0.0))
    assert torch.equal(*(still.decode(tokens, generator=seeded(seed)) for seed in (1, 2)))


def moved_gradients(model: Semanticist, loss: Tensor) -> dict[str, bool]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters()}


def test_losses_are_finite_and_reach_every_parameter(model: Semanticist, images: Tensor) -> None:
    model.train()
    torch.manual_seed(0)
    losses = model.losses((images.repeat(4, 1, 1, 1), torch.zeros(12)), progress=1.0)
    names = {"loss_flow"} if model.config.objective == "flow" else {"loss_mse", "loss_vb"}
    assert set(losses) == names and all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    reached = moved_gradients(model, torch.stack([*losses.values()]).sum())
    assert all(reached.values()), [name for name, moved in reached.items() if not moved]


def test_masked_tokens_get_no_gradient_and_their_nulls_do(model: Semanticist, images: Tensor, tokens: Tensor) -> None:
    tokens.requires_grad_()
    mask = torch.tensor([[True, True, False, False]]).expand(3, -1)
    noise = torch.randn(3, 1, 8, 8, generator=seeded())
    sum(model.denoising(images, tokens, mask, noise=noise).values()).backward()  # type: ignore[union-attr]
    null = model.decoder.null_tokens.grad
    assert tokens.grad is not None and null is not None
    assert tokens.grad[:, :2].abs().min() > 0 and not tokens.grad[:, 2:].any()
    assert null[:, 2:].abs().min() > 0 and not null[:, :2].any()


def test_losses_are_the_means_of_their_rows(model: Semanticist, images: Tensor, tokens: Tensor) -> None:
    t = torch.tensor([10, 500, 900]) if model.config.objective == "ddpm" else torch.tensor([0.1, 0.5, 0.9])
    noise = torch.randn(3, 1, 8, 8, generator=seeded())
    rows = model.denoising_rows(images, tokens, t=t, noise=noise)
    means = model.denoising(images, tokens, t=t, noise=noise)
    for name, row in rows.items():
        torch.testing.assert_close(means[name], row.mean())
        alone = model.denoising_rows(images[1:2], tokens[1:2], t=t[1:2], noise=noise[1:2])[name]
        torch.testing.assert_close(alone, row[1:2])


def test_prediction_error_is_the_loss_without_its_weight(model: Semanticist, images: Tensor, tokens: Tensor) -> None:
    t, noise = model.uniform_times(3), torch.randn(3, 1, 8, 8, generator=seeded())
    mask = torch.tensor([[True, True, False, False]]).expand(3, -1)
    error = model.prediction_error(images, tokens, mask, t=t, noise=noise)
    rows = model.denoising_rows(images, tokens, mask, t=t, noise=noise)
    if model.config.objective == "ddpm":
        assert t.tolist() == [166, 500, 833]
        torch.testing.assert_close(error, rows["loss_mse"])
    else:
        torch.testing.assert_close(t, torch.tensor([1 / 6, 1 / 2, 5 / 6]))
        torch.testing.assert_close(error / (1 - t), rows["loss_flow"])  # weight_power 1 on the linear path


def test_the_two_objectives_use_the_same_range_of_times() -> None:
    assert tokenizer("flow").decoder.time_embed.scale == 1000 and tokenizer("ddpm").decoder.time_embed.scale == 1


def shares(model: Semanticist, progress: float) -> list[float]:
    """How often 0, 1, ..., K tokens are kept in training."""
    torch.manual_seed(0)
    mask = model.training_mask(20000, progress, torch.device("cpu"))
    assert (mask.int().diff(dim=1) <= 0).all(), "kept tokens are a prefix"
    return (torch.bincount(mask.sum(1), minlength=K + 1) / 20000).tolist()


def close(expected: list[float]) -> Any:
    return pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(
    ("nested", "progress", "expected"),
    [
        (NestedConfig(), 0.1, [0.1, 0, 0, 0, 0.9]),
        (NestedConfig(), 0.125, [0, 0.25, 0.25, 0.25, 0.25]),
        (NestedConfig(after=1.0), 1.0, [0.1, 0, 0, 0, 0.9]),  # never
        (NestedConfig(drop_after=0.2), 1.0, [0.2, 0.2, 0.2, 0.2, 0.2]),
        (NestedConfig(enabled=False, drop_before=0.3), 1.0, [0.3, 0, 0, 0, 0.7]),
        (NestedConfig(full_prob=0.4), 1.0, [0, 0.15, 0.15, 0.15, 0.55]),
        (NestedConfig(full_prob=0.4), 0.1, [0.1, 0, 0, 0, 0.9]),
    ],
)
def test_training_masks(nested: NestedConfig, progress: float, expected: list[float]) -> None:
    assert shares(tokenizer(nested=nested), progress) == close(expected)


def test_pixels_are_a_round_trip(images: Tensor) -> None:
    space = Pixels(1)
    assert space.encode(images).min() >= -1 and space.encode(torch.ones(1)) == 1 and space.encode(torch.zeros(1)) == -1
    torch.testing.assert_close(space.decode(space.encode(images)), images)


Call = Callable[[Semanticist, Tensor, Tensor], Any]

BAD_CALLS: list[tuple[str, Call, str]] = [
    ("keep above", lambda m, x, z: m.decode(z, keep=K + 1), "keep: expected 0..4"),
    ("keep above the prefix", lambda m, x, z: m.decode(z[:, :2], keep=3), "keep: expected 0..2"),
    ("keep below", lambda m, x, z: m.decode(z, keep=-1), "keep: expected 0..4"),
    ("keep of another batch", lambda m, x, z: m.decode(z, keep=torch.ones(2).long()), "shape (3,), got shape (2,)"),
    ("too many tokens", lambda m, x, z: m.decode(z.repeat(1, 2, 1)), "(B, at most 4, 3), got (3, 8, 3)"),
    ("wide tokens", lambda m, x, z: m.decode(z.repeat(1, 1, 2)), "(B, at most 4, 3), got (3, 4, 6)"),
    ("narrow tokens", lambda m, x, z: m.decode(z[..., :1]), "(B, at most 4, 3), got (3, 4, 1)"),
    ("one sequence", lambda m, x, z: m.decode(z[0]), "(B, at most 4, 3), got (4, 3)"),
    ("colour images", lambda m, x, z: m.encode(x.expand(-1, 3, -1, -1)), "(B, 1, H, W), got (3, 3, 8, 8)"),
    ("odd images", lambda m, x, z: m.encode(x[..., :7]), "multiples of 4 (the encoder's patches; the model's own"),
    ("small images", lambda m, x, z: m.encode(x[..., :2, :2]), "got 2x2"),
    ("no image", lambda m, x, z: m.encode(x[..., :0]), "got 8x0"),
    ("several batches", lambda m, x, z: m.encode(x[None]), "got the shape (1, 3, 1, 8, 8)"),
    ("odd size", lambda m, x, z: m.decode(z, size=10), "multiples of 4 (the decoder's patches; the model's own"),
    ("odd height", lambda m, x, z: m.decode(z, size=(9, 8)), "size is 8), got 9x8"),
    ("size zero", lambda m, x, z: m.decode(z, size=0), "got 0x0"),
    ("ids", lambda m, x, z: m.decode(z.long()), "got (3, 4, 3) of torch.int64"),
    ("generators", lambda m, x, z: m.decode(z, generator=[seeded()]), "one for each of 3 rows, got 1"),
    ("sampler", lambda m, x, z: m.decode(z, sampler="dopri5"), "got 'dopri5'"),
    ("no steps", lambda m, x, z: m.decode(z, steps=0), "got 0"),
    (
        "schedule",
        lambda m, x, z: m.decode(z, guidance=Guidance(2.0, schedule="linear")),
        "expected schedule='constant' for a decoder, got 'linear'",
    ),
    ("weak model", lambda m, x, z: m.decode(z, guidance=Guidance(2.0, weak_model=m)), "expected no weak_model"),
]


@pytest.mark.parametrize(("call", "message"), [c[1:] for c in BAD_CALLS], ids=[c[0] for c in BAD_CALLS])
def test_bad_input_is_reported_in_one_line(
    model: Semanticist, images: Tensor, tokens: Tensor, call: Call, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        call(model, images, tokens)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_samplers_belong_to_their_objective(tokens: Tensor) -> None:
    for objective, samplers in (("flow", ["ancestral", "ddim"]), ("ddpm", ["euler", "heun"])):
        for sampler in samplers:
            with pytest.raises(InputError, match=f"got '{sampler}'"):
                tokenizer(objective).decode(tokens, sampler=sampler)
    with pytest.raises(InputError, match="at least 2 steps, got 1"):
        tokenizer("ddpm").decode(tokens, steps=1)
    with pytest.raises(InputError, match="cannot take 2000 steps"):
        tokenizer("ddpm").decode(tokens, steps=2000)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"image_size": 10}, "encoder.patch"),
        ({"token_dim": 1}, "token_dim"),
        ({"encoder": EncoderConfig(patch=4, dim=12, heads=5)}, "encoder.heads"),
        ({"encoder": EncoderConfig(patch=4, dim=12, heads=2, mean=[0.1, 0.2])}, "encoder.mean"),
        ({"encoder": EncoderConfig(patch=4, dim=12, heads=2, std=[1.0, 1.0])}, "encoder.std"),
        ({"decoder": DecoderConfig(patch=4, dim=18, depth=2, heads=3)}, "decoder.dim"),
        ({"decoder": DecoderConfig(patch=4, dim=12, depth=2, heads=3, align_depth=3)}, "decoder.align_depth"),
    ],
)
def test_contradictions_name_their_key(changes: dict[str, Any], key: str) -> None:
    config().check()
    with pytest.raises(ConfigError, match=f"^{key}: "):
        config(**changes).check()


@pytest.mark.parametrize("options", [{"conditioning": "cross"}, {"null_token": "shared"}])
def test_prefixes_guidance_and_training_with_the_decoders_of_the_paper(
    images: Tensor, tokens: Tensor, options: dict[str, Any]
) -> None:
    small = DecoderConfig(patch=4, dim=12, depth=2, heads=2, **options)
    model = tokenizer(decoder=small)
    changed = tokens.clone()
    changed[:, 2:] += 1
    torch.testing.assert_close(latents(model, changed, keep=2), latents(model, tokens, keep=2))
    assert not torch.allclose(latents(model, changed, keep=3), latents(model, tokens, keep=3))
    nothing = latents(model, tokens, keep=0)
    torch.testing.assert_close(latents(model, tokens, guidance=0.0), nothing)
    torch.testing.assert_close(latents(model, tokens[:, :0]), nothing)
    torch.manual_seed(0)
    sum(model.train().losses((images,), 1.0).values()).backward()  # type: ignore[union-attr]
    silent = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert silent == [] and model.decoder.null_tokens.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_a_codebook_makes_ids_of_the_nearest_entries(images: Tensor, objective: str) -> None:
    quantised = tokenizer(objective, quantiser=VQConfig(size=9, l2=False))
    plain = tokenizer(objective)
    plain.load_state_dict({k: v for k, v in quantised.state_dict().items() if not k.startswith("quantiser")})
    assert quantised.quantiser is not None
    ids, codes = quantised.encode(images), quantised.quantiser.get_parameter("codebook")
    assert torch.equal(ids, torch.cdist(plain.encode(images), codes).argmin(-1)) and ids.dtype == torch.int64
    assert (quantised.spec.vocab_size, quantised.spec.dim, quantised.spec.ordered) == (9, None, True)
    for keep in (0, 2, torch.tensor([4, 1, 3])):
        decoded = quantised.decode(ids, keep=keep, generator=seeded())
        assert torch.equal(decoded, plain.decode(codes[ids], keep=keep, generator=seeded()))
    noise, t = torch.randn(3, 1, 8, 8, generator=seeded()), quantised.uniform_times(3)
    for method in ("prediction_error", "predictions"):
        found = getattr(quantised, method)(2 * images - 1, ids, t=t, noise=noise)
        assert torch.equal(found, getattr(plain, method)(2 * images - 1, codes[ids], t=t, noise=noise))
    with pytest.raises(InputError, match=r"expected ids of shape \(B, at most 4\), got \(3, 4, 3\)"):
        quantised.decode(codes[ids])
    with pytest.raises(InputError, match=r"expected ids in 0\.\.8, got 9"):
        quantised.decode(ids.fill_(9))


def test_a_codebook_is_trained_and_passes_the_gradient_to_the_encoder(images: Tensor) -> None:
    model = tokenizer(quantiser=VQConfig(size=9, l2=False)).train()
    losses = model.losses((images,), 1.0)
    assert {"loss_flow", "loss_vq", "loss_commit", "codes_used", "perplexity"} == losses.keys()
    losses["loss_flow"].backward(retain_graph=True)
    assert model.quantiser is not None and model.quantiser.get_parameter("codebook").grad is None
    assert model.bottleneck.proj.weight.grad.any()  # type: ignore[union-attr]
    losses["loss_vq"].backward()
    assert model.quantiser.get_parameter("codebook").grad.any()  # type: ignore[union-attr]
