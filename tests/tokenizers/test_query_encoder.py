"""What each query can depend on, and the published sizes."""

import pytest
import torch
from torch import Tensor, nn

from tok1d.bottleneck.normalised import Normalised
from tok1d.nn.attention import masked, prefix_causal_mask
from tok1d.tokenizers.query_encoder import EncoderConfig, QueryEncoder

PREFIX = 1 + 4  # class token and patches of an 8 px image


def encoder(num_tokens: int = 5, *, causal: bool = True) -> QueryEncoder:
    torch.manual_seed(0)
    config = EncoderConfig(patch=4, dim=12, depth=2, heads=2, causal=causal, drop_path=0.3)
    model = QueryEncoder(config, 8, 1, num_tokens).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def changed_tokens(model: QueryEncoder, images: Tensor, query: int) -> list[bool]:
    """Which output tokens move when query `query` and its position move."""
    before = model(images)
    model.queries[:, query].normal_()  # not a shift of all channels: LayerNorm would undo it
    model.positions[:, PREFIX + query].normal_()
    return (model(images) - before).abs().amax((0, 2)).gt(1e-9).tolist()


@pytest.mark.parametrize("query", range(5))
def test_a_query_never_reaches_earlier_tokens(images: Tensor, query: int) -> None:
    assert changed_tokens(encoder(), images, query) == [token >= query for token in range(5)]


def test_without_causality_it_reaches_all(images: Tensor) -> None:
    assert changed_tokens(encoder(causal=False), images, 3) == [True] * 5


def states(model: QueryEncoder, images: Tensor) -> list[Tensor]:
    """The whole sequence after every block."""
    kept: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda module, inputs, output: kept.append(output)) for block in model.blocks]
    model(images)
    for hook in hooks:
        hook.remove()
    return kept


@pytest.mark.parametrize("causal", [True, False])
def test_patches_are_blind_to_tokens(images: Tensor, causal: bool) -> None:
    model = encoder(causal=causal)
    before = states(model, images)
    with torch.no_grad():
        model.queries.normal_()
    same = [torch.equal(a[:, :PREFIX], b[:, :PREFIX]) for a, b in zip(before, states(model, images), strict=True)]
    assert same == [causal, causal]


def test_more_queries_leave_the_leading_tokens_alone(images: Tensor) -> None:
    long = encoder(5)
    for length in (1, 3):
        short = encoder(length)
        weights = dict(long.state_dict())
        weights["queries"] = weights["queries"][:, :length]
        weights["positions"] = weights["positions"][:, : PREFIX + length]
        short.load_state_dict(weights)
        torch.testing.assert_close(short(images), long(images)[:, :length])


def test_forward_is_the_masked_transformer(images: Tensor) -> None:
    model = encoder()
    x = model.embed(images)
    for block in model.blocks:
        x = block(x, masked(prefix_causal_mask(PREFIX, 5)))
    torch.testing.assert_close(model(images), model.norm(x)[:, PREFIX:])


def test_sequence_is_class_patches_queries(images: Tensor) -> None:
    model = encoder()
    x = model.embed(images) - model.positions
    torch.testing.assert_close(x[:, :1], model.cls_token.expand(2, -1, -1))
    torch.testing.assert_close(x[:, 1:PREFIX], model.patch_embed(images))
    torch.testing.assert_close(x[:, PREFIX:], model.queries.expand(2, -1, -1))


def test_drop_path_grows_linearly_from_zero() -> None:
    model = QueryEncoder(EncoderConfig(patch=4, dim=12, depth=4, heads=2, drop_path=0.3), 8, 1, 2)
    rates = [block.drop1[1].rate for block in model.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("num_tokens", "encoder_size", "projection_size"),
    [
        (256, 86_237_952, 12_304),
        (128, 86_041_344, 24_608),
        (64, 85_943_040, 49_216),
        (32, 85_893_888, 98_432),
        (16, 85_869_312, 196_864),
    ],
)
def test_published_sizes(num_tokens: int, encoder_size: int, projection_size: int) -> None:
    with torch.device("meta"):
        base, projection = QueryEncoder(EncoderConfig(), 256, 3, num_tokens), Normalised(768, 4096 // num_tokens)
    assert sum(p.numel() for p in base.parameters()) == encoder_size
    assert sum(p.numel() for p in projection.parameters()) == projection_size
