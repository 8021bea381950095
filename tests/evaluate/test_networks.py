"""The classifier: its shapes, losses and features, and that it learns."""

import math

import pytest
import torch

from tok1d.errors import ConfigError, DataError
from tok1d.evaluate.networks import CNN, CNNConfig, predict


@pytest.fixture(scope="module")
def network() -> CNN:
    torch.manual_seed(0)
    return CNN(CNNConfig(width=8, features=32)).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_the_default_classifier_fits_in_one_megabyte_of_float16() -> None:
    parameters = CNN(CNNConfig()).state_dict().values()
    assert 2 * sum(tensor.numel() for tensor in parameters) < 950_000


def test_the_head_of_the_features_is_the_forward_pass(network: CNN, images: torch.Tensor) -> None:
    features = network.features(images)
    assert features.shape == (6, 32) and (features >= 0).all()
    assert torch.equal(network.head(features), network(images))
    assert torch.equal(predict(network, images), network(images).argmax(dim=1))


def test_features_of_an_image_do_not_depend_on_its_batch_or_on_training(network: CNN, images: torch.Tensor) -> None:
    together = network.features(images)
    assert torch.allclose(network.features(images[:1]), together[:1], atol=1e-6)
    network.train()
    in_training = network.features(images)
    network.eval()
    assert torch.equal(in_training, together)


def test_half_precision_weights_give_nearly_the_same_classifier(network: CNN, images: torch.Tensor) -> None:
    rounded = CNN(network.config).eval()
    rounded.load_state_dict({name: tensor.half() for name, tensor in network.state_dict().items()})
    difference = (rounded.features(images) - network.features(images)).abs().max()
    assert difference < 5e-3 * network.features(images).abs().max()


def test_the_first_loss_is_that_of_a_uniform_guess(network: CNN, images: torch.Tensor) -> None:
    losses = network.losses((images, torch.arange(6)), progress=0.0)
    assert set(losses) == {"loss", "accuracy"}
    assert losses["loss"].item() == pytest.approx(math.log(10), abs=0.15)
    assert losses["loss"].requires_grad and not losses["accuracy"].requires_grad


def test_label_smoothing_is_the_mixture_of_two_cross_entropies(images: torch.Tensor) -> None:
    torch.manual_seed(1)
    plain = CNN(CNNConfig(width=8, features=32, dropout=0.0, label_smoothing=0.0))
    smooth = CNN(CNNConfig(width=8, features=32, dropout=0.0, label_smoothing=0.1))
    torch.nn.init.normal_(plain.head.weight)
    smooth.load_state_dict(plain.state_dict())
    labels = torch.arange(6)
    uniform = -plain(images).log_softmax(dim=1).mean()
    expected = 0.9 * plain.losses((images, labels), 0.0)["loss"] + 0.1 * uniform
    assert torch.allclose(smooth.losses((images, labels), 0.0)["loss"], expected, rtol=1e-4)


def test_it_learns_where_a_square_is() -> None:
    torch.manual_seed(0)
    network = CNN(CNNConfig(num_classes=2, image_size=16, width=4, features=16, dropout=0.0))
    labels = torch.arange(32) % 2
    images = 0.2 * torch.rand(32, 1, 16, 16)
    images[labels == 1, :, :6, :6] += 0.8
    parameters = list(network.parameters())
    for _ in range(30):
        gradients = torch.autograd.grad(network.losses((images, labels), 0.0)["loss"], parameters)
        for parameter, gradient in zip(parameters, gradients):
            parameter.data -= 0.05 * gradient
    assert torch.equal(predict(network.eval(), images), labels)


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 32, 32), (1, 28, 28)])
def test_images_of_another_shape_are_refused_in_one_line(network: CNN, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expects images \(B, 1, 28, 28\)") as caught:
        network.features(torch.zeros(shape))
    assert "\n" not in str(caught.value)


def test_a_width_that_the_groups_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        CNNConfig(width=10).check()
