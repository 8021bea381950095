"""What stays in float32 when a training runs in half precision: bottlenecks, statistics and losses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.bottleneck.kl import KL
from tok1d.bottleneck.normalised import Normalised
from tok1d.bottleneck.plain import Plain
from tok1d.bottleneck.softvq import SoftVQ
from tok1d.bottleneck.vq import VQ, entropy_loss
from tok1d.config.load import load_recipe
from tok1d.diffusion.ddpm import Chain
from tok1d.diffusion.objective import FlowObjective, direction_loss
from tok1d.diffusion.path import Path
from tok1d.generators.llamagen import LlamaGen, LlamaGenConfig
from tok1d.generators.maskgit import MaskGIT, MaskGITConfig
from tok1d.losses.adversarial import AdversarialConfig, AdversarialLoss
from tok1d.losses.alignment import alignment_loss
from tok1d.losses.classifier import LogitsDistance
from tok1d.losses.hog import hog
from tok1d.losses.masked import caption_loss, masked_mse
from tok1d.losses.perceptual import LPIPS, vgg16
from tok1d.tokenizers.deterministic import pixel_error
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card

HALVES = [torch.bfloat16, torch.float16]
BOTTLENECKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Plain(16, 8),
    "normalised": lambda: Normalised(16, 8),
    "kl": lambda: KL(16, 8),
    "vq": lambda: VQ(16, 8, size=32, entropy=0.1, revival=True),
    "softvq": lambda: SoftVQ(16, 8, size=32, num_codebooks=2),
}


def tensors(found: Any) -> list[Tensor]:
    """All floating-point tensors in a result."""
    if isinstance(found, Tensor):
        return [found] if found.is_floating_point() else []
    values = found.values() if isinstance(found, dict) else found
    return [each for value in values for each in tensors(value)]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_bottlenecks_do_as_without_autocast(kind: str, half: torch.dtype) -> None:
    """Bottlenecks on encoder states in half precision."""
    torch.manual_seed(0)
    layer = BOTTLENECKS[kind]().eval()
    x = torch.randn(3, 6, 16).to(half)
    with torch.random.fork_rng():
        expected = layer(x.float())
    with torch.autocast("cpu", dtype=half):
        found = layer(x)
        encoded = layer.encode(x) if hasattr(layer, "encode") else layer(x)
    assert all(each.dtype == torch.float32 for each in tensors(found))
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(encoded, layer.encode(x.float()) if hasattr(layer, "encode") else expected)


class Constant(nn.Module):
    """A network with a given output: its own half-precision arithmetic is not tested here."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.out


def stub(model: Any, out: Tensor) -> Any:
    model.eval()
    model.forward = lambda *args: out
    return model


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


IDS = torch.arange(12).view(3, 4) % 8
IMAGES = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
TIMES = torch.tensor([0, 400, 999])
LLAMA = LlamaGenConfig(num_tokens=4, vocab_size=8, num_classes=2, dim=16, depth=1, heads=2)
MASKGIT = MaskGITConfig(num_tokens=4, vocab_size=8, num_classes=2, dim=16, depth=1, heads=2)


def adversarial_loss(out: Tensor, **keys: Any) -> AdversarialLoss:
    return AdversarialLoss(AdversarialConfig(weight=0.4, start=0, lecam=0.1, adaptive=False, **keys), Constant(out))


# Each maps a network output, float32 or half, to losses: name -> (shape of that, the losses).
LOSSES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Any]]] = {
    "mse": ((3, 1, 16, 16), lambda x: pixel_error("mse", x, IMAGES)),
    "l1": ((3, 1, 16, 16), lambda x: pixel_error("l1", x, IMAGES)),
    "masked": ((3, 4, 8), lambda x: masked_mse(x, random_tensor(3, 4, 8), IDS > 2)),
    "caption": ((3, 8), lambda x: caption_loss(x, random_tensor(3, 8).abs())),
    "alignment": ((3, 4, 8), lambda x: alignment_loss(x, random_tensor(3, 4, 8))),
    "hog": ((3, 1, 16, 16), lambda x: hog(x.float().sigmoid(), 8, 4)),
    "lpips": (
        (3, 64, 4, 4),
        lambda x: LPIPS(vgg16((64,) * 5), [torch.ones(64)]).distance([x], [random_tensor(3, 64, 4, 4)]),
    ),
    "logits": ((3, 9), lambda x: LogitsDistance(Constant(x), side=16)(IMAGES, IMAGES)),
    "entropy": ((3, 4, 8), lambda x: entropy_loss(x, eps=1e-6)),
    "flow": ((3, 4, 8), lambda x: flow(x, power=0.0)),
    "weighted flow": ((3, 4, 8), lambda x: flow(x, power=2.0)),
    "direction": ((3, 4, 8), lambda x: direction_loss(x, random_tensor(3, 4, 8))),
    "ddpm": (
        (3, 4, 8),
        lambda x: Chain.named("linear").losses(Constant(x), random_tensor(3, 2, 8), random_tensor(3, 2, 8), TIMES),
    ),
    "hinge": ((3, 9), lambda x: adversarial_loss(x).discriminator_losses(IMAGES, IMAGES, 1)),
    "logistic": (
        (3, 9),
        lambda x: adversarial_loss(x, loss="vanilla", lecam_of="means").discriminator_losses(IMAGES, IMAGES, 1),
    ),
    "fooling": ((3, 9), lambda x: adversarial_loss(x).generator_terms(IMAGES, IMAGES, 1, x, {})),
    "llamagen": ((3, 4, 8), lambda x: stub(LlamaGen(LLAMA), x).loss_rows(IDS, torch.zeros(3, dtype=torch.long))),
    "maskgit": ((3, 4, 8), lambda x: stub(MaskGIT(MASKGIT), x).loss(x, IDS, IDS > 2)),
}


def flow(x: Tensor, *, power: float) -> Tensor:
    objective = FlowObjective(Path("linear"), "velocity", power)
    return objective.loss(lambda x_t, t: x, random_tensor(3, 4, 8), random_tensor(3, 8, 4).view(3, 4, 8), TIMES / 1000)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_as_without_autocast(name: str, half: torch.dtype) -> None:
    shape, losses = LOSSES[name]
    x = random_tensor(*shape).to(half)
    expected = tensors(losses(x.float()))
    with torch.autocast("cpu", dtype=half):
        found = tensors(losses(x))
    assert found and all(each.dtype == torch.float32 for each in found)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("kind", ["tokenizer", "maetok", "smap", "titok", "generator", "sit", "classifier"])
def test_every_loss_of_a_model_is_float32(
    tiny: Callable[..., str], tmp_path: Any, fashion: None, kind: str, half: torch.dtype
) -> None:
    keys, made = {}, {"generator": "tokenizer", "sit": "maetok"}.get(kind)
    if made:
        torch.manual_seed(0)
        store.save_model(store.build_model(load_recipe(tiny(made)).model), tmp_path / "tokenizer", Card())
        keys = {"tokenizer": tmp_path / "tokenizer", "cache": tmp_path / "cache"}
    task = build_task(load_recipe(tiny(kind, **keys), ["train.batch_size=2"]))
    losses: Any = task.model.train().losses
    with torch.autocast("cpu", dtype=half):
        terms = losses(task.batch(0, 0, 1), 0.5)
    assert {name: value.dtype for name, value in terms.items()} == dict.fromkeys(terms, torch.float32)
