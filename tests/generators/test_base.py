"""The common interface of generators: sampling settings, their checks, and the attributes that other code reads."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tok1d.config.sampling import SampleSettings
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.generators.autoregressive import EpsilonLlamaGen, EpsilonLlamaGenConfig
from tok1d.generators.base import Generator
from tok1d.generators.card import CARD, CARDConfig
from tok1d.generators.head import HeadConfig
from tok1d.generators.llamagen import LlamaGen, LlamaGenConfig
from tok1d.generators.maskgit import MaskGIT, MaskGITConfig
from tok1d.generators.sit import DiT, DiTConfig, SiT, SiTConfig

SIZES: dict[str, Any] = {"num_tokens": 4, "num_classes": 3, "dim": 16, "depth": 1, "heads": 2}
HEAD = HeadConfig(width=8, depth=1, steps=3)
GENERATORS = {
    "epsilon": lambda: EpsilonLlamaGen(EpsilonLlamaGenConfig(token_dim=3, head=HEAD, **SIZES)),
    "card": lambda: CARD(CARDConfig(token_dim=3, class_dim=5, head=HEAD, **SIZES)),
    "llamagen": lambda: LlamaGen(LlamaGenConfig(vocab_size=7, **SIZES)),
    "maskgit": lambda: MaskGIT(MaskGITConfig(vocab_size=7, **SIZES)),
    "sit": lambda: SiT(SiTConfig(token_dim=3, **SIZES)),
    "dit": lambda: DiT(DiTConfig(token_dim=3, steps=4, **SIZES)),
}
# Settings that differ from the defaults, of each kind of generator.
READ: dict[str, dict[str, Any]] = {
    "diffusion": {"steps": 2, "temperature": 0.5},
    "categorical": {"temperature": 0.5, "top_k": 3, "top_p": 0.8},
    "masked": {"steps": 2, "temperature": 0.5},
}
LABELS = torch.tensor([2, 0])


@pytest.fixture(params=GENERATORS)
def model(request: pytest.FixtureRequest) -> Generator:
    torch.manual_seed(0)
    made = GENERATORS[request.param]().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def sample(model: Generator, **options: Any) -> Tensor:
    return model.sample(LABELS, guidance=2.0, generator=torch.Generator().manual_seed(1), **options)


def test_settings_and_single_changes_are_the_same(model: Generator) -> None:
    read = READ[model.kind]
    expected = sample(model, **read)
    assert torch.equal(sample(model, settings=SampleSettings(**read)), expected)
    changed = SampleSettings(**{**read, "temperature": 0.9})
    assert torch.equal(sample(model, settings=changed, temperature=0.5), expected)
    assert not torch.equal(sample(model), expected)


def test_settings_that_are_not_read_are_refused(model: Generator) -> None:
    values = {"steps": 2, "sampler": "euler", "top_k": 3, "top_p": 0.8}
    unread = values.keys() - SampleSettings().read_by(model.kind).keys()
    assert unread
    for name in unread:
        message = f"^{name}: {model.config.name} does not use it, leave it out; got {values[name]}$"
        with pytest.raises(InputError, match=message):
            sample(model, **{name: values[name]})
    with pytest.raises(TypeError, match="heat"):
        sample(model, heat=1.0)


def test_noise_replaces_the_generator(model: Generator) -> None:
    asked: list[torch.Size] = []

    def noise(x: Tensor) -> Tensor:
        asked.append(x.shape)
        return torch.full_like(x, 0.5)

    first, again = (model.sample(LABELS, noise=noise) for _ in range(2))
    assert torch.equal(first, again) and len(asked) > 0
    assert all(shape[0] == len(LABELS) for shape in asked)


def test_length_and_number(model: Generator) -> None:
    assert model.sample(num=3).shape[:2] == (3, 4)
    if model.parallel:
        with pytest.raises(InputError, match=r"expected 4, because .* all tokens at once, got 2"):
            model.sample(num=1, length=2)
    else:
        assert model.sample(num=3, length=2).shape[:2] == (3, 2)
    for options in ({}, {"num": 0}):
        with pytest.raises(InputError, match="a condition, or num"):
            model.sample(**options)


def test_guidance_that_a_model_does_not_have_is_refused(model: Generator) -> None:
    within = Guidance(2.0, (0.25, 0.75))
    if model.guidance_interval_of is None:
        with pytest.raises(InputError, match="no interval"):
            model.sample(LABELS, guidance=within)
    else:
        assert model.sample(LABELS, guidance=within).shape[:2] == (2, 4)
    if model.guidance_interval_of == "time":
        with pytest.raises(InputError, match="no schedule"):
            model.sample(LABELS, guidance=Guidance(2.0, schedule="linear"))
    else:
        assert model.guidance_of(3.0) == Guidance(3.0, schedule=model.guidance_schedule, power=model.guidance_power)


def test_evaluated_networks_are_called_once_an_evaluation(model: Generator) -> None:
    calls: list[int] = []
    (network,) = model.evaluated_networks(Guidance())
    hook = network.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    settings = SampleSettings(steps=2) if model.kind != "categorical" else SampleSettings()
    model.sample(LABELS, settings=settings)
    hook.remove()
    assert calls == [2] * ((4 if not model.parallel else 1) * (settings.steps or 1))
    assert model.resolved_settings(settings)["sampler"]
