"""A tokenizer made for another image size is the same function as the original on images of that size."""

import pytest
import torch
from torch import nn

from tok1d.errors import ConfigError
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.semanticist import Semanticist, SemanticistConfig
from tok1d.tokenizers.token_dit import DecoderConfig
from tok1d.zoo.transfer import resized


@pytest.fixture
def model() -> Semanticist:
    torch.manual_seed(0)
    config = SemanticistConfig(
        image_size=8,
        channels=1,
        num_tokens=3,
        token_dim=4,
        encoder=EncoderConfig(patch=4, dim=12, depth=2, heads=2),
        decoder=DecoderConfig(patch=4, dim=12, depth=2, heads=2),
        objective="flow",
        steps=2,
    )
    model = Semanticist(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("size", [4, 12, 20])
def test_the_new_tokenizer_encodes_and_decodes_as_the_old_one(model: Semanticist, size: int) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    new = resized(model, size)
    assert torch.equal(torch.get_rng_state(), before), "nothing random is left in it"
    assert new.config.image_size == size and model.config.image_size == 8 and not new.training
    images = torch.rand(2, 1, size, size)
    with torch.no_grad():
        tokens = model.encode(images)
        torch.testing.assert_close(new.encode(images), tokens)
        torch.testing.assert_close(new.decode(tokens), model.decode(tokens, size=size))
    assert new.decode(tokens).shape == images.shape


def test_the_weights_are_its_own_and_trainable(model: Semanticist) -> None:
    old = {name: value.clone() for name, value in model.state_dict().items()}
    new = resized(model, 16)
    assert new.state_dict().keys() == old.keys()
    different = [name for name, value in new.state_dict().items() if value.shape != old[name].shape]
    assert different == ["encoder.positions"] and new.encoder.positions.shape[1] == 1 + 16 + 3
    loss = torch.stack([*new.train().losses((torch.rand(2, 1, 16, 16), torch.zeros(2)), 1.0).values()]).sum()
    loss.backward()
    assert all(parameter.is_leaf and parameter.grad is not None for parameter in new.parameters())
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, old[name]) for name, value in model.state_dict().items())


def test_the_same_size_is_a_copy(model: Semanticist) -> None:
    same = resized(model, 8).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in model.state_dict().items())


def test_a_size_that_does_not_divide_is_one_line(model: Semanticist) -> None:
    with pytest.raises(ConfigError, match=r"^encoder\.patch: 4 does not divide image_size 10"):
        resized(model, 10)
