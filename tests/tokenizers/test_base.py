"""The interface of tokenizers: what all of them declare, and what the base class of deterministic ones does."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from tok1d.bottleneck.plain import Plain
from tok1d.config.registry import build_model_config
from tok1d.errors import InputError
from tok1d.losses.total import Batch, Tensors
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.deterministic import DeterministicTokenizer
from tok1d.tokenizers.maetok import MAETok, MAETokConfig
from tok1d.tokenizers.pixel_decoder import PixelDecoder
from tok1d.tokenizers.pixel_encoder import PixelEncoder
from tok1d.tokenizers.semanticist import Semanticist
from tok1d.tokenizers.smap import SMAP
from tok1d.tokenizers.titok import TiTok
from tok1d.tokenizers.vit import ViTConfig
from tok1d.zoo.compat.titok import LegacyTiTok
from tok1d.zoo.store import build_model

VIT = {"patch": 8, "dim": 16, "depth": 1, "heads": 2}
SIZES = {"image_size": 16, "channels": 1, "num_tokens": 4, "token_dim": 4, "encoder": VIT, "decoder": VIT}


def tokenizer(**keys: Any) -> Any:
    return build_model(build_model_config({**SIZES, **keys}))


def test_capabilities() -> None:
    flags = {cls: (cls.any_size, cls.adversarial) for cls in (Semanticist, MAETok, SMAP, TiTok, LegacyTiTok)}
    assert flags == {
        Semanticist: (False, False),
        MAETok: (True, True),
        SMAP: (True, True),
        TiTok: (True, True),
        LegacyTiTok: (False, True),
    }
    for cls, (_, adversarial) in flags.items():
        assert hasattr(cls, "reconstruct") == hasattr(cls, "last_weight") == adversarial


class Small(DeterministicTokenizer):
    """The minimum that a subclass has to implement."""

    config: MAETokConfig

    def __init__(self, config: MAETokConfig) -> None:
        super().__init__()
        self.config = config
        self.spec = TokenSpec(config.num_tokens, config.token_dim, deterministic=True)
        self.encoder = PixelEncoder(config.encoder, config.image_size, config.channels, config.num_tokens)
        self.bottleneck = Plain(config.encoder.dim, config.token_dim)
        self.decoder = PixelDecoder(
            config.decoder, config.image_size, config.channels, config.num_tokens, config.token_dim, head="linear"
        )

    def reconstruct(self, batch: Batch, progress: float) -> tuple[Tensor, Tensor, Tensors]:
        latents = self.bottleneck(self._states(batch[0], None))[0]
        pixels = self.decoder.decode(latents, (batch[0].shape[-2], batch[0].shape[-1]))
        return self._unsigned(pixels), latents, {"loss_reconstruction": self._pixel_error("mse", pixels, batch[0])}


def test_a_subclass_encodes_decodes_and_trains() -> None:
    torch.manual_seed(0)
    vit = ViTConfig(**VIT)  # type: ignore[arg-type]
    model = Small(MAETokConfig(image_size=16, channels=1, num_tokens=4, token_dim=4, encoder=vit, decoder=vit))
    images = torch.rand(2, 1, 16, 16)
    tokens = model.encode(images)
    assert tokens.shape == (2, 4, 4)
    decoded = model.decode(tokens, size=(8, 16))
    assert decoded.shape == (2, 1, 8, 16) and decoded.min() >= 0 and decoded.max() <= 1
    model.losses((images,), 0.0)["loss_reconstruction"].backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "decoder.head" in name)
    assert torch.equal(model.last_weight, model.decoder.head.proj.weight)
    with pytest.raises(InputError, match=r"^posterior: expected a tokenizer with a KL bottleneck, got Plain"):
        model.posterior(images)


def test_frozen_encoders_stay_in_eval_mode_and_learn_nothing() -> None:
    model = tokenizer(name="maetok", stage="finetune").train()
    assert model.training and model.decoder.training and not model.encoder.training and not model.bottleneck.training
    model.losses((torch.rand(2, 1, 16, 16),), 0.5)["loss_reconstruction"].backward()
    frozen = (*model.encoder.parameters(), *model.bottleneck.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)


TEACHER = {"teacher": "vit_small_patch14_dinov2", "image_size": 28}


@pytest.mark.parametrize(
    ("keys", "images"),
    [
        ({"name": "maetok", "auxiliary": [{"target": "teacher:x", "dim": 5}], "alignment": {**TEACHER, "dim": 6}}, 1),
        (
            {
                "name": "semanticist",
                "alignment": TEACHER,
                "decoder": {**VIT, "patch": 2, "align_depth": 1, "align_dim": 6},
                "latents": {"space": "autoencoder", "path": "a/b", "channels": 5, "factor": 4},
                "channels": 3,
            },
            3,
        ),
        ({"name": "titok"}, 1),
    ],
)
def test_stand_ins_let_a_model_on_the_meta_device_compute_losses(keys: dict[str, Any], images: int) -> None:
    with torch.device("meta"):
        model = tokenizer(**keys)
        model.train().use_stand_ins()
        terms = model.losses((torch.rand(2, images, 16, 16), torch.zeros(2)), 0.5)
    assert all(term.shape == () for term in terms.values())


@pytest.mark.parametrize(("per", "average", "expected"), [("iteration", True, 2), ("iteration", False, 4)])
def test_stand_ins_fix_the_number_of_kept_tokens(per: Literal["iteration"], average: bool, expected: int) -> None:
    model: nn.Module = tokenizer(name="smap", tail_drop={"keep_per": per}).train()
    assert isinstance(model, SMAP)
    model.use_stand_ins(average=average)
    assert {model.training_keep(torch.zeros(2, 1, 16, 16)) for _ in range(9)} == {expected}
