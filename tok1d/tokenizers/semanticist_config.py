"""The configuration of Semanticist (arXiv 2503.08685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tok1d.config.fields import option
from tok1d.diffusion.few_step import FewStepConfig
from tok1d.errors import ConfigError
from tok1d.losses.alignment import AlignmentConfig
from tok1d.tokenizers.bottlenecks import VQConfig
from tok1d.tokenizers.latent_space import LatentConfig
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.token_dit import DecoderConfig


@dataclass
class FlowConfig:
    """The settings of objective=flow."""

    path: Literal["linear", "cosine"] = option("linear", "path from noise (t = 0) to data (t = 1)")
    prediction: Literal["data", "noise", "velocity"] = option("data", "what the network predicts")
    times: Literal["uniform", "logit_normal"] = option("logit_normal", "distribution of training times")
    times_mean: float = option(-1.0, "logit_normal: mean; negative values favour noise")
    times_std: float = option(1.0, "logit_normal: standard deviation", gt=0)
    weight_power: float = option(
        1.0, "power of the loss weight sigma(t)^-power; 2 with prediction=data is the velocity loss", ge=0
    )
    shift: float = option(1.0, "shift of the sampling times; above 1: more steps near the noise", gt=0)
    temperature: float = option(1.0, "scale of the initial noise in decoding; 0: towards the mean image", ge=0)
    few_step: FewStepConfig | None = option(None, "decoding in few steps; null: a decoder of the velocity")

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other."""
        if self.few_step is not None and self.prediction == "noise":
            raise ConfigError("prediction: expected data or velocity with few_step, which steps from t = 0, got noise")


@dataclass
class NestedConfig:
    """Dropping of token suffixes (section 4.3), and of all tokens for classifier-free guidance."""

    after: float = option(
        0.125,
        "share of the training after which suffixes are dropped (release: 50 of 400 epochs); 1: never",
        ge=0,
        le=1,
    )
    drop_before: float = option(0.1, "before that: probability of dropping all tokens", ge=0, le=1)
    drop_after: float = option(0.0, "after that: probability of dropping all tokens (release: 0)", ge=0, le=1)
    full_prob: float = option(
        0.0,
        "after that: probability of keeping all tokens in place of a random number (release: 0); above 0 the last "
        "tokens are trained more often",
        ge=0,
        le=1,
    )
    enabled: bool = option(True, "false: no suffixes are dropped, all tokens with probability drop_before")


@dataclass
class SemanticistConfig:
    """A Semanticist tokenizer. The defaults are the paper's ViT-B/16 and DiT-L/2 at 256 px, but on pixels."""

    name: str = option("semanticist", "which model this is")
    image_size: int = option(256, "side of the square training images, in pixels", ge=1)
    channels: int = option(3, "image channels", ge=1)
    num_tokens: int = option(256, "number of tokens", ge=1)
    token_dim: int = option(16, "channels of a token", ge=1)
    normalise: bool = option(True, "standardise every token over its channels")
    normalise_eps: float = option(0.0, "added to the standard deviation", ge=0)
    quantiser: VQConfig | None = option(
        None, "a codebook: a token becomes its nearest entry, and an id (not in the paper); null: continuous tokens"
    )
    encoder: EncoderConfig = option(EncoderConfig())
    decoder: DecoderConfig = option(DecoderConfig())
    latents: LatentConfig = option(LatentConfig())
    objective: Literal["ddpm", "flow"] = option("ddpm", "the paper's DDPM with learned variance, or a continuous flow")
    flow: FlowConfig = option(FlowConfig())
    nested: NestedConfig = option(NestedConfig())
    alignment: AlignmentConfig = option(AlignmentConfig())
    steps: int = option(250, "default number of decoding steps", ge=1)
    stage: Literal["train", "finetune"] = option(
        "train", "finetune: only the decoder is trained, on the tokens of the model of init_from (not in the paper)"
    )

    def check(self) -> None:
        """Raise ConfigError on fields that contradict each other."""
        self.encoder.check_channels(self.channels)
        factor = self.latents.factor or 1
        if self.image_size % factor:
            raise ConfigError(f"latents.factor: {factor} does not divide image_size {self.image_size}")
        if self.image_size % self.encoder.patch:
            raise ConfigError(f"encoder.patch: {self.encoder.patch} does not divide image_size {self.image_size}")
        side = self.image_size // factor
        if side % self.decoder.patch:
            what = f"image_size {side}" if factor == 1 else f"image_size / latents.factor = {side}"
            raise ConfigError(f"decoder.patch: {self.decoder.patch} does not divide {what}")
        for part, net in (("encoder", self.encoder), ("decoder", self.decoder)):
            if net.dim % net.heads:
                raise ConfigError(f"{part}.heads: {net.heads} does not divide {part}.dim {net.dim}")
        if self.flow.few_step is not None:
            if self.objective != "flow":
                raise ConfigError(f"objective: expected flow with flow.few_step, got {self.objective}")
            if self.flow.few_step.teacher and self.stage != "finetune":
                raise ConfigError(
                    "stage: expected finetune with flow.few_step.teacher, which decodes the tokens of its own encoder, "
                    f"got {self.stage}"
                )
        if self.objective == "ddpm" and not 2 <= self.steps <= 1000:
            raise ConfigError(f"steps: expected 2 to 1000 steps for a DDPM decoder, got {self.steps}")
        if self.normalise and self.token_dim < 2:
            raise ConfigError("token_dim: a normalised token needs at least 2 channels, got 1; or set normalise=false")
        if self.quantiser is not None and self.quantiser.name != "vq":
            raise ConfigError(f"quantiser.name: expected vq, got {self.quantiser.name}")
        if self.quantiser is not None and self.quantiser.levels > 1:
            raise ConfigError(f"quantiser.levels: expected 1, one id per token, got {self.quantiser.levels}")
        if self.decoder.dim % 4:
            raise ConfigError(f"decoder.dim: expected a multiple of 4 for its position table, got {self.decoder.dim}")
        if self.decoder.align_depth > self.decoder.depth:
            raise ConfigError(
                f"decoder.align_depth: expected at most depth {self.decoder.depth}, got {self.decoder.align_depth}"
            )
        if self.alignment.teacher and not self.decoder.align_depth:
            raise ConfigError(
                "decoder.align_depth: expected a block number with alignment.teacher (released: 8), got 0"
            )
