"""What each query can depend on, and the published sizes."""

import pytest
import torch
from torch import Tensor, nn

from tok1d.bottleneck.normalised import Normalised
from tok1d.nn.attention import masked, prefix_causal_mask
from tok1d.nn.position import resample_grid
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
    """The whole sequence after every block but the last, which makes the tokens alone."""
    kept: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda module, inputs, output: kept.append(output)) for block in model.blocks]
    model(images)
    for hook in hooks:
        hook.remove()
    assert kept.pop().shape[1] == model.num_tokens
    return kept


@pytest.mark.parametrize("causal", [True, False])
def test_patches_do_not_attend_to_tokens(images: Tensor, causal: bool) -> None:
    model = encoder(causal=causal)
    before = states(model, images)
    with torch.no_grad():
        model.queries.normal_()
    same = [torch.equal(a[:, :PREFIX], b[:, :PREFIX]) for a, b in zip(before, states(model, images), strict=True)]
    assert same == [causal] * (len(model.blocks) - 1)


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


SIZES = [(4, 4), (8, 12), (16, 8), (20, 20)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@torch.no_grad()
def test_other_sizes_are_read_with_resampled_patch_positions(height: int, width: int) -> None:
    """By hand: the class token's and the queries' positions stay, those of the 2 x 2 patches become another grid."""
    model, source = encoder(), torch.Generator().manual_seed(2)
    images = torch.rand(2, 1, height, width, dtype=torch.float64, generator=source)
    grid = (height // 4, width // 4)
    middle = resample_grid(model.positions[:, 1:PREFIX], (2, 2), grid)
    x = torch.cat([model.cls_token.expand(2, -1, -1), model.patch_embed(images), model.queries.expand(2, -1, -1)], 1)
    x = x + torch.cat([model.positions[:, :1], middle, model.positions[:, PREFIX:]], dim=1)
    torch.testing.assert_close(model.embed(images), x)
    prefix = 1 + grid[0] * grid[1]
    for block in model.blocks:
        x = block(x, masked(prefix_causal_mask(prefix, 5)))
    torch.testing.assert_close(model(images), model.norm(x)[:, prefix:])


def test_the_native_size_reads_the_stored_table() -> None:
    model = encoder()
    assert model.table(2, 2) is model.positions
    assert not torch.allclose(model.table(4, 4)[:, 1:-5].mean(1), torch.zeros(()).double())


def test_rows_of_a_picture_are_not_swapped_with_columns() -> None:
    model = encoder()
    with torch.no_grad():
        model.positions[0, 1:PREFIX] = torch.tensor([0.0, 0.0, 1.0, 1.0]).double()[:, None]  # the row of a patch
    table = model.table(2, 3)[0, 1:7, 0].view(2, 3)
    torch.testing.assert_close(table, torch.tensor([[0.0] * 3, [1.0] * 3]).double(), atol=1e-5, rtol=0)


def test_resampled_tables_are_kept_and_never_stale() -> None:
    model = encoder()
    names = list(model.state_dict())
    with torch.no_grad():
        first = model.table(3, 3)
        assert model.table(3, 3) is first and not torch.equal(model.table(3, 4)[:, :1], model.table(3, 4)[:, 1:2])
        model.positions.mul_(2)
        torch.testing.assert_close(model.table(3, 3), 2 * first)
        model.positions.data.mul_(2)  # as averaged weights are swapped in, before eval()
        model.eval()
        torch.testing.assert_close(model.table(3, 3), 4 * first)
        assert model.float().table(3, 3).dtype == torch.float32
    assert list(model.state_dict()) == names and names == list(encoder().state_dict())


def test_training_at_another_size_reaches_every_position() -> None:
    model = encoder().train()
    model(torch.rand(2, 1, 16, 12, dtype=torch.float64)).square().sum().backward()
    gradient = model.positions.grad
    assert gradient is not None and (gradient.abs().amax((0, 2)) > 0).all()


def test_patches_do_not_attend_to_tokens_at_another_size() -> None:
    model, large = encoder(), torch.rand(2, 1, 12, 12, dtype=torch.float64)
    before = states(model, large)
    with torch.no_grad():
        model.queries.normal_()
    assert all(torch.equal(a[:, :10], b[:, :10]) for a, b in zip(before, states(model, large), strict=True))


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


@pytest.mark.parametrize(
    ("mean", "std"), [([0.7], []), ([], [0.25]), ([0.7, 0.5, 0.2], [0.3, 0.2, 0.1])], ids=["mean", "std", "channels"]
)
def test_mean_and_std_standardise_the_channels(mean: list[float], std: list[float]) -> None:
    torch.manual_seed(0)
    sizes = {"patch": 4, "dim": 12, "depth": 2, "heads": 2}
    plain = QueryEncoder(EncoderConfig(**sizes), 8, 3, 2).eval()
    model = QueryEncoder(EncoderConfig(**sizes, mean=mean, std=std), 8, 3, 2).eval()
    model.load_state_dict(plain.state_dict())  # the numbers are in the configuration, not among the weights
    images = torch.rand(2, 3, 8, 8)
    offset, scale = (torch.tensor(values)[:, None, None] for values in (mean or [0.0], std or [1.0]))
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain((images - offset) / scale))
