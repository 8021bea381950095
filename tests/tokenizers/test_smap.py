"""SMAP: information in the prefix and the class, token dropping, gradients, sampling of k, and the sizes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.registry import build_model_config
from tok1d.errors import ConfigError, InputError
from tok1d.tokenizers.smap import SMAP, SMAPConfig
from tok1d.tokenizers.tail_drop import TailDropConfig, sample_tail
from tok1d.train.rng import seed_of
from tok1d.zoo.store import build_model

SMALL = {"patch": 4, "dim": 16, "depth": 2, "heads": 2}
WIDER = {"patch": 4, "dim": 24, "depth": 2, "heads": 2}
N = 6
BOTTLENECKS: dict[str, dict[str, Any]] = {
    "kl": {"name": "kl"},
    "softvq": {"name": "softvq", "size": 9, "num_codebooks": 2},
    "vq": {"name": "vq", "size": 9},
}


def config(**keys: Any) -> SMAPConfig:
    mapping = {"name": "smap", "image_size": 16, "num_tokens": N, "token_dim": 4, "num_classes": 5, **keys}
    bottleneck = keys.get("bottleneck", "kl")
    mapping["bottleneck"] = BOTTLENECKS[bottleneck] if isinstance(bottleneck, str) else bottleneck
    mapping["encoder"] = {**SMALL, **keys.get("encoder", {})}
    mapping["decoder"] = {**WIDER, **keys.get("decoder", {})}
    return build_model_config(mapping)


def tokenizer(**keys: Any) -> SMAP:
    torch.manual_seed(0)
    model = build_model(config(**keys))
    assert isinstance(model, SMAP)
    for parameter in model.parameters():  # far from the initialisation, where all outputs are nearly equal
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([4, 0, 2])


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_without_tokens_the_image_depends_on_the_label_alone(images: Tensor, bottleneck: str) -> None:
    model, same = tokenizer(bottleneck=bottleneck), torch.tensor([3, 3, 1])
    tokens = model.encode(images, same)
    decoded = model.decode(tokens, same, keep=0)
    assert torch.equal(decoded[0], decoded[1]) and not torch.allclose(decoded[0], decoded[2])
    assert not torch.allclose(*model.decode(tokens, same)[:2])
    torch.testing.assert_close(model.decode(tokens[:, :0], same), decoded)
    torch.testing.assert_close(model.reconstruct((images, same), 0.0, keep=0)[0].clamp(0, 1), decoded)


@pytest.mark.parametrize("rotary", ["none", "mixed", "axial"])
@pytest.mark.parametrize("condition", ["both", "encoder", "decoder", "none"])
def test_masking_the_tail_equals_cutting_it_off(images: Tensor, rotary: str, condition: str) -> None:
    net = {"rotary": rotary, "heads": 2, "class_token": rotary == "axial"}
    model = tokenizer(decoder=net, condition_on=condition, bottleneck="softvq")  # which uses no random numbers
    tokens = model.encode(images, LABELS)
    for k in range(N + 1):
        counts = torch.full((3,), k)
        (cut, *_), (masked, *_) = (model.reconstruct((images, LABELS), 0.0, keep=keep) for keep in (k, counts))
        torch.testing.assert_close(masked, cut, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.decode(tokens[:, :k], LABELS), model.decode(tokens, LABELS, keep=k))
    mixed = torch.tensor([0, 5, 2])
    both = model.decode(tokens, LABELS, keep=mixed)
    for i, k in enumerate(mixed.tolist()):
        alone = model.decode(tokens[i : i + 1], LABELS[i : i + 1], keep=k)
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-5, rtol=0)


def test_masking_and_cutting_have_the_same_gradients(images: Tensor) -> None:
    found = []
    for keep in (4, torch.full((3,), 4)):
        model = tokenizer()
        model.reconstruct((images, LABELS), 0.0, keep=keep)[2]["loss_reconstruction"].backward()
        found.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)


def test_dropping_touches_neither_the_class_nor_the_mask_tokens(images: Tensor) -> None:
    model, received = tokenizer(), {}
    for k in (0, 2, N):
        hook = model.decoder.vit.register_forward_pre_hook(lambda _, inputs, k=k: received.update({k: inputs}))
        model.reconstruct((images, LABELS), 0.0, keep=k)
        hook.remove()
    for k, (masks, grid, extra, _) in received.items():
        full_masks, full_grid, full_extra, _ = received[N]
        assert grid == full_grid and torch.equal(masks, full_masks) and extra.shape == (3, 1 + k, 24)
        assert torch.equal(extra[:, :1], full_extra[:, :1])


def test_everything_is_regularised_before_the_tail_falls(images: Tensor) -> None:
    for bottleneck in BOTTLENECKS:
        model = tokenizer(bottleneck=bottleneck)
        torch.manual_seed(5)
        _, whole, losses = model.reconstruct((images, LABELS), 0.0, keep=N)
        torch.manual_seed(5)
        _, cut, others = model.reconstruct((images, LABELS), 0.0, keep=1)
        assert torch.equal(whole, cut) and whole.shape == (3, N, 4)
        for name in losses.keys() - {"loss_reconstruction", "keep"}:
            assert torch.equal(losses[name], others[name]), name


def test_codes_survive_a_round_trip(images: Tensor) -> None:
    model = tokenizer(bottleneck="vq")
    ids = model.encode(images, LABELS)
    assert ids.shape == (3, N) and ids.dtype == torch.int64 and model.spec.vocab_size == 9
    entries = model.bottleneck.embed(ids)
    assert torch.equal(model.bottleneck.distances(entries).argmin(-1), ids)  # type: ignore[operator]
    recon, latents, _ = model.reconstruct((images, LABELS), 0.0)
    torch.testing.assert_close(latents, entries)
    torch.testing.assert_close(model.decode(ids, LABELS), recon.clamp(0, 1))


@pytest.mark.parametrize("bottleneck", ["kl", "softvq"])
def test_what_is_encoded_is_decoded_to_the_reconstruction(images: Tensor, bottleneck: str) -> None:
    model = tokenizer(bottleneck=bottleneck)
    tokens = model.encode(images, LABELS)
    assert tokens.shape == (3, N, 4) and torch.equal(tokens, model.encode(images, LABELS))
    if bottleneck == "softvq":
        recon, latents, _ = model.reconstruct((images, LABELS), 0.0)
        torch.testing.assert_close(latents, tokens)
        torch.testing.assert_close(model.decode(tokens, LABELS), recon.clamp(0, 1))


def test_no_label_is_the_null_row_on_both_sides(images: Tensor) -> None:
    model = tokenizer()
    assert model.condition is not None
    table = model.condition.label_embed.table.weight
    assert table.shape == (6, 16) and torch.equal(model.class_vectors(), table[:5])
    tokens = model.encode(images)
    with torch.no_grad():
        table[3] = table[5]
    third = torch.full((3,), 3)
    torch.testing.assert_close(model.encode(images, third), tokens)
    torch.testing.assert_close(model.decode(tokens, third, keep=2), model.decode(tokens, keep=2))
    assert not torch.allclose(model.encode(images, LABELS), tokens)


def test_the_null_row_learns_only_under_label_dropout(images: Tensor) -> None:
    for dropout, rows in ((0.0, [0, 2, 4]), (1.0, [5])):
        model = tokenizer(label_dropout=dropout).train()
        assert model.condition is not None
        model.losses((images, LABELS), 0.0)["loss_reconstruction"].backward()
        grad = model.condition.label_embed.table.weight.grad
        assert grad is not None and grad.abs().sum(1).nonzero()[:, 0].tolist() == rows


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
@pytest.mark.parametrize("keep", [N, 0, torch.tensor([0, 0, 0])])
def test_gradients_reach_every_weight_and_are_zero_but_there_without_tokens(
    images: Tensor, bottleneck: str, keep: int | Tensor
) -> None:
    model = tokenizer(bottleneck=bottleneck, head="conv").train()
    _, _, terms = model.reconstruct((images, LABELS), 0.0, keep=keep)
    (terms["loss_reconstruction"] if bottleneck != "vq" else sum_of(terms)).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    still = {name for name, weight in model.named_parameters() if not weight.grad.any()}  # type: ignore[union-attr]
    if isinstance(keep, int) and keep:
        assert still == set()
        return
    assert {"decoder.token_positions", "decoder.token_embed.weight", "decoder.token_embed.bias"} <= still
    if bottleneck != "vq":
        silent = ("encoder.", "bottleneck.", "condition.encoder_position", "decoder.token_")
        assert still == {name for name, _ in model.named_parameters() if name.startswith(silent)}


def sum_of(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([value for name, value in terms.items() if name.startswith("loss")]).sum()


def frequencies(counts: Tensor, length: int) -> Tensor:
    return torch.bincount(counts, minlength=length + 1) / len(counts)


@pytest.mark.parametrize("keep_per", ["iteration", "sample"])
def test_k_is_uniform_over_zero_to_all(keep_per: str) -> None:
    model = tokenizer(tail_drop={"keep_per": keep_per}).train()
    torch.manual_seed(0)
    batch = torch.zeros(3 if keep_per == "iteration" else 4000, 3, 1, 1)
    found = [model.training_keep(batch) for _ in range(4000 if keep_per == "iteration" else 1)]
    if keep_per == "iteration":
        assert all(isinstance(keep, int) for keep in found)
        counts = torch.tensor(found)
    else:
        counts = torch.as_tensor(found[0])
        assert counts.shape == (4000,)
    # 7 values of 4000 samples: a share has a deviation of 0.0055.
    torch.testing.assert_close(frequencies(counts, N), torch.full((N + 1,), 1 / (N + 1)), atol=0.022, rtol=0)
    assert model.eval().training_keep(batch) == N


def test_k_can_be_given() -> None:
    torch.manual_seed(0)
    groups = sample_tail(TailDropConfig(group=2, min_keep=1), 6, 3000)
    torch.testing.assert_close(frequencies(groups, 6), torch.tensor([0, 0, 1, 0, 1, 0, 1]) / 3, atol=0.03, rtol=0)
    ends = sample_tail(TailDropConfig(min_keep=3, zero_prob=0.25, full_prob=0.5), 6, 3000)
    expected = torch.tensor([4, 0, 0, 1, 1, 1, 9]) / 16
    torch.testing.assert_close(frequencies(ends, 6), expected, atol=0.03, rtol=0)
    model = tokenizer(tail_drop={"enabled": False}).train()
    assert model.training_keep(torch.zeros(2, 3, 16, 16)) == N


@pytest.mark.parametrize("keep_per", ["iteration", "sample"])
def test_all_tokens_are_kept_before_the_share_after(keep_per: str, images: Tensor) -> None:
    model = tokenizer(tail_drop={"keep_per": keep_per, "after": 0.25}).train()

    def seen(progress: float) -> set[float]:
        return {float(model.losses((images, LABELS), progress)["keep"]) for _ in range(30)}

    assert seen(0.0) == seen(0.24) == {N}
    assert len(seen(0.25)) > 2
    assert min(seen(1.0)) < N - 1


def test_processes_and_steps_sample_k_independently() -> None:
    model, batch, steps = tokenizer().train(), torch.zeros(2, 3, 16, 16), 2000

    def counts(rank: int) -> Tensor:
        found = []
        for step in range(steps):
            torch.manual_seed(seed_of(0, step, rank))
            found.append(model.training_keep(batch))
        return torch.tensor(found, dtype=torch.float32)

    ranks = torch.stack([counts(0), counts(1)])
    # Uniform over 0..6 has a variance of 4; the deviation of a correlation of 2000 pairs is 0.022.
    torch.testing.assert_close(torch.cov(ranks), 4 * torch.eye(2), atol=0.35, rtol=0)


def test_training_statistics_of_k_are_logged(images: Tensor) -> None:
    model = tokenizer(tail_drop={"keep_per": "sample"}).train()
    torch.manual_seed(3)
    expected = sample_tail(TailDropConfig(keep_per="sample"), N, 3).float().mean()
    torch.manual_seed(3)
    softvq = tokenizer(
        tail_drop={"keep_per": "sample"}, bottleneck="softvq"
    ).train()  # which uses no random numbers itself
    torch.manual_seed(3)
    assert softvq.losses((images, LABELS), 0.0)["keep"] == expected
    assert model.eval().losses((images, LABELS), 0.0)["keep"] == N


def test_without_the_condition_no_label_is_read(images: Tensor) -> None:
    model = tokenizer(condition_on="none")
    assert model.condition is None and not model.spec.needs_label and model.spec.ordered
    tokens = model.encode(images)
    assert torch.equal(model.encode(images, LABELS), tokens)
    assert torch.equal(model.decode(tokens, LABELS), model.decode(tokens))
    nothing = model.decode(tokens, keep=0)
    assert torch.equal(nothing[0], nothing[1])
    with pytest.raises(InputError, match=r"class vectors: expected .*, got one with condition_on=none"):
        model.class_vectors()


@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("kind", ["class", "text"])
def test_a_condition_on_one_side_is_read_by_that_side_alone(images: Tensor, side: str, kind: str) -> None:
    text = {"kind": "text", "encoder": "none", "dim": 5, "length": 4}
    model = tokenizer(condition_on=side, **({"condition": text} if kind == "text" else {}))
    given: Any = LABELS if kind == "class" else torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2))
    other: Any = given.roll(1, 0)
    tokens, others = model.encode(images, given), model.encode(images, other)
    assert torch.equal(tokens, others) == (side == "decoder")
    assert torch.allclose(tokens, others, atol=1e-3) == (side == "decoder")
    decoded, swapped = model.decode(tokens, given), model.decode(tokens, other)
    assert torch.equal(decoded, swapped) == (side == "encoder")
    assert torch.allclose(decoded, swapped, atol=1e-3) == (side == "encoder")
    assert model.spec.needs_label and model.spec.reads_captions == (kind == "text")
    unused = {"encoder": "condition.decoder_position", "decoder": "condition.encoder_position"}[side]
    assert unused not in model.state_dict()
    torch.manual_seed(0)
    sum_of(model.train().losses((images, given), 0.0)).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_label_dropout_works_with_a_condition_on_one_side(images: Tensor, side: str) -> None:
    model = tokenizer(condition_on=side, label_dropout=1.0).train()
    assert model.condition is not None
    model.losses((images, LABELS), 0.0)["loss_reconstruction"].backward()
    grad = model.condition.source.get_submodule("table").get_parameter("weight").grad
    assert grad is not None and grad.abs().sum(1).nonzero()[:, 0].tolist() == [5]


def test_the_former_switch_of_the_condition_still_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert config(use_condition=True).condition_on == config().condition_on == "both"
    assert config(use_condition=False).condition_on == "none"
    for wrong in ("left", 1, None):
        with pytest.raises(ConfigError, match=r"^model\.condition_on: expected"):
            config(condition_on=wrong)


def test_residual_levels_are_ids_of_their_own(images: Tensor) -> None:
    model = tokenizer(bottleneck={"name": "vq", "size": 9, "l2": False, "levels": 2, "revival": True})
    ids = model.encode(images, LABELS)
    assert ids.shape == (3, 2 * N) and (model.spec.length, model.spec.vocab_size) == (2 * N, 9)
    whole = model.decode(ids, LABELS)
    for k in range(2 * N + 1):
        cut = model.decode(ids[:, :k], LABELS)
        torch.testing.assert_close(cut, model.decode(ids, LABELS, keep=k))
        changed = ids.clone()
        changed[:, k:] = (changed[:, k:] + 1) % 9
        torch.testing.assert_close(cut, model.decode(changed, LABELS, keep=k))
        assert torch.allclose(cut, whole) == (k == 2 * N)
    both = model.decode(ids, LABELS, keep=torch.tensor([3, 12, 0]))
    for i, k in enumerate((3, 12, 0)):
        torch.testing.assert_close(both[i], model.decode(ids, LABELS, keep=k)[i], atol=1e-5, rtol=0)
    torch.manual_seed(1)
    losses = model.train().losses((images, LABELS), 0.0)
    assert {"loss_vq", "loss_commit", "codes_used", "perplexity"} <= losses.keys() and 0 <= losses["keep"] <= N


def test_other_image_sizes(images: Tensor) -> None:
    model = tokenizer()
    tokens = model.encode(torch.rand(2, 3, 24, 16), LABELS[:2])
    assert model.decode(tokens, LABELS[:2], keep=3, size=(24, 16)).shape == (2, 3, 24, 16)


@pytest.mark.parametrize(
    ("tokens", "cond", "options", "message"),
    [
        (
            (2, N, 4),
            LABELS[:2],
            {"steps": 25},
            "steps: expected none, because this decoder is a single forward pass, got 25",
        ),
        (
            (2, N, 4),
            LABELS[:2],
            {"guidance": 2.0},
            "guidance: expected 1, because this decoder is deterministic, got 2.0",
        ),
        ((2, N, 4), LABELS[:2], {"keep": 7}, r"keep: expected 0\.\.6"),
        ((2, 3, 4), LABELS[:2], {"keep": 4}, r"keep: expected 0\.\.3"),
        ((2, N + 1, 4), LABELS[:2], {}, r"expected tokens of shape \(B, at most 6, 4\), got \(2, 7, 4\)"),
        ((2, N, 4), torch.tensor([0, 5]), {}, r"class ids: expected 0\.\.4, got 0\.\.5"),
        ((2, N, 4), torch.zeros(2), {}, r"expected class ids \(B,\) of integers"),
    ],
)
def test_decoding_rejects_what_it_cannot_do(tokens: Any, cond: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer().decode(torch.zeros(tokens), cond, **options)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"decoder": {"patch": 5}}, "model.decoder.patch: 5 does not divide image_size 16"),
        ({"bottleneck": {"name": "softvq"}}, "model.bottleneck.num_codebooks: 4 does not divide 6 tokens"),
        ({"bottleneck": {"name": "softvq", "grouping": "residual"}}, "model.bottleneck.l2: expected false with"),
        (
            {"bottleneck": {"name": "vq", "levels": 4, "l2": True}},
            "model.bottleneck.l2: expected false with residual levels",
        ),
        ({"tail_drop": {"group": 4}}, "model.tail_drop.group: expected a divisor of num_tokens=6, got 4"),
        ({"tail_drop": {"min_keep": 7}}, "model.tail_drop.min_keep: expected at most num_tokens=6, got 7"),
        ({"tail_drop": {"full_prob": 0.6, "zero_prob": 0.5}}, "model.tail_drop.zero_prob: expected at most 1 together"),
        ({"condition_on": "none", "label_dropout": 0.1}, "model.label_dropout: condition_on=none has no label"),
    ],
)
def test_contradictions_are_one_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as error:
        config(**keys)
    assert "\n" not in str(error.value)


def test_the_defaults_are_the_reference_s() -> None:
    model = build_model_config({"name": "smap"})
    assert (model.bottleneck.size, model.token_dim, model.bottleneck.l2, model.bottleneck.revival) == (
        8192,
        64,
        False,
        True,
    )
    for net in (model.encoder, model.decoder):
        assert not net.class_token and net.registers == 0 and net.layer_scale == 0 and net.rotary == "none"
    assert model.condition_on == "both" and model.label_dropout == 0 and model.tail_drop.keep_per == "iteration"
    small = tokenizer()
    assert {module.eps for module in small.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}


def test_narrower_and_equal_decoders_share_the_table() -> None:
    assert isinstance(tokenizer().condition.proj, nn.Linear)  # type: ignore[union-attr]
    assert isinstance(tokenizer(decoder=SMALL).condition.proj, nn.Identity)  # type: ignore[union-attr]
