"""The base class of the tokenizers: what users call. `encode_images` and `decode_tokens` of a subclass do the work."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import torch
from torch import Tensor, nn

from tok1d.config.pretrained import Pretrained
from tok1d.config.registry import attribute
from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.solver import Generators
from tok1d.errors import InputError
from tok1d.images.convert import Pictures, check_range, to_pil, to_tensor
from tok1d.tokenizers.base import Size, TokenizerConfig, TokenSpec

if TYPE_CHECKING:
    from PIL.Image import Image


class Budget(Protocol):
    """What `TokenizerModel.budget` returns; see `tok1d.inference.budget.Budget`."""

    @property
    def keep(self) -> Tensor: ...

    @property
    def images(self) -> Tensor: ...

    @property
    def tokens(self) -> Tensor: ...

    @property
    def quality(self) -> Tensor: ...


class TokenizerModel(Pretrained, nn.Module):
    """A tokenizer that reads pictures of any kind. Exported as `tok1d.Tokenizer`.

    In eval mode `encode` and `decode` compute no gradients, unless their input requires one (`x.requires_grad_()`); in
    train mode they do. Training itself calls `losses`.

        >>> import tok1d
        >>> from PIL import Image
        >>> model = tok1d.load("fashion-mnist-semanticist")
        >>> tokens = model.encode(Image.new("RGB", (200, 150), "navy"))
        >>> tokens.shape
        torch.Size([1, 16, 16])
        >>> model.decode(tokens, keep=4, as_pil=True)[0].size
        (28, 28)
    """

    config: TokenizerConfig
    spec: TokenSpec
    budget_heads: tuple[nn.Module, ...] = ()  # a head that predicts qualities; no submodule, so not among the weights

    @abstractmethod
    def encode_images(self, images: Tensor, cond: Tensor | None) -> Tensor:
        """`encode` of images (B, C, H, W) in [0, 1]."""

    @abstractmethod
    def decode_tokens(self, tokens: Tensor, cond: Tensor | None, **options: object) -> Tensor:
        """`decode` to images (B, C, H, W)."""

    def preprocess(self, images: Pictures) -> Tensor:
        """Pictures of any kind as float32 (B, C, H, W) in [0, 1] on the model's device, made as in its training.

            >>> import numpy as np, tok1d
            >>> tok1d.load("fashion-mnist-maetok").preprocess(np.zeros((200, 300, 3), np.uint8)).shape
            torch.Size([1, 1, 28, 28])

        See `tok1d.images.to_tensor`.
        """
        return to_tensor(images, self)

    def encode(self, images: Pictures, cond: Tensor | None = None) -> Tensor:
        """Pictures -> tokens (B, K, D), with a KL bottleneck the means, or ids (B, K) int64; nothing is random.

        Args:
            images: a floating-point tensor (B, C, H, W) in [0, 1] is encoded as it is, at any size that the encoder's
                patches divide. Anything else (a PIL image, a path, an array, a list of these, uint8) passes
                `preprocess`.
            cond: class ids (B,) or captions (B, T, E) where `spec.needs_label`; None: null class, no caption. Else
                ignored.

        Raises:
            InputError: pictures of another type or shape, values out of range, or a condition that does not fit.
        """
        if isinstance(images, Tensor) and images.dim() == 4 and images.is_floating_point():
            if images.shape[1] == self.config.channels:  # else the message below is about channels
                check_range(images)
            with self._gradients_if_asked(images):
                return self.encode_images(images.to(self._dtype), cond)
        with self._gradients_if_asked():
            return self.encode_images(self.preprocess(images).to(self._dtype), cond)

    @overload
    def decode(
        self,
        tokens: Tensor,
        cond: Tensor | None = None,
        *,
        as_pil: Literal[True],
        seed: int | None = None,
        **options: object,
    ) -> list[Image]: ...

    @overload
    def decode(
        self,
        tokens: Tensor,
        cond: Tensor | None = None,
        *,
        keep: int | Tensor | None = None,
        steps: int | None = None,
        guidance: float | Guidance = 1.0,
        generator: Generators | None = None,
        seed: int | None = None,
        sampler: str | None = None,
        size: Size | None = None,
        as_pil: Literal[False] = False,
    ) -> Tensor: ...

    def decode(
        self,
        tokens: Tensor,
        cond: Tensor | None = None,
        *,
        as_pil: bool = False,
        seed: int | None = None,
        **options: object,
    ) -> Tensor | list[Image]:
        """Tokens (B, k, D) or ids (B, k) -> images (B, C, H, W) in [0, 1], or with `as_pil` a list of PIL images.

        Args:
            tokens: in any float precision. With ordered tokens k <= K, else K.
            cond: what the decoder is conditioned on, as for `encode`; TiTok's decoder may read text.
            keep: number of leading tokens to decode from, one int or (B,) int64; default: all. Unordered tokens need
                all K; 0 decodes from the condition alone, or is the unconditional model. With residual levels a token
                that is cut is decoded from its first levels.
            size: image size in pixels, a side or (H, W) that the patches divide; default: that of the training images.
            steps, guidance, sampler: of a diffusion decoder: steps, default `config.steps`; scale of classifier-free
                guidance against the null tokens, 1 is off; "euler" or "heun" (flow), "ancestral" or "ddim" (DDPM).
                A deterministic decoder refuses them.
            generator: random numbers of a diffusion decoder. With a list of one per image, an image does not depend on
                its batch. Default: seeded with 0.
            seed: of the random numbers of a diffusion decoder, in place of `generator`.

        Raises:
            InputError: tokens of another shape, ids outside the vocabulary, or another argument that the decoder
                does not support.
        """
        if seed is not None and options.get("generator") is not None:
            raise InputError("seed: expected either seed or generator, got both")
        if seed is not None and not self.spec.deterministic:
            options["generator"] = torch.Generator(tokens.device).manual_seed(seed)
        with self._gradients_if_asked(tokens):
            images = self.decode_tokens(tokens, cond, **options)
        return to_pil(images) if as_pil else images

    def budget(
        self,
        images: Pictures,
        cond: Tensor | None = None,
        *,
        quality: float,
        metric: str = "psnr",
        by: Literal["search", "head"] = "search",
        seed: int = 0,
    ) -> Budget:
        """Images from as few leading tokens as reach a quality, with ordered tokens.

            >>> import numpy as np, tok1d
            >>> model = tok1d.load("fashion-mnist-smap")
            >>> found = model.budget(np.zeros((28, 28), np.uint8), quality=0)
            >>> found.keep.tolist(), found.images.shape
            ([1], torch.Size([1, 1, 28, 28]))

        Args:
            images, cond: as for `encode`.
            quality: in dB; 0 keeps one token, `math.inf` all.
            metric: psnr, or -10 log10 of a distance: lpips, efficientnet-lite0, timm:NAME, model:FOLDER or a bundled
                classifier.
            by: search decodes all prefixes and measures them; head predicts the qualities from the tokens, with the
                head that `tok1d train fashion_mnist/budget init_from=MODEL` adds.
            seed: of the decoder's noise, which is the same for all prefixes of an image.

        Returns:
            An object with `keep`, the number of tokens of each image (B,), the decoded `images`, their `quality` (B,)
            and `tokens`.

        Raises:
            InputError: unordered tokens, or no such head or metric.
        """
        given = isinstance(images, Tensor) and images.dim() == 4 and images.is_floating_point()
        pixels = images.to(self._dtype) if isinstance(images, Tensor) and given else self.preprocess(images)
        return attribute("tok1d.inference.budget:budget")(
            self, pixels, cond, quality=quality, metric=metric, by=by, seed=seed
        )

    def forward(self, images: Pictures, cond: Tensor | None = None, **options: Any) -> Tensor:
        """The reconstruction of pictures: `decode` of their tokens from `encode`, with the options of `decode`."""
        return self.decode(self.encode(images, cond), cond, **options)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _gradients_if_asked(self, *given: Tensor) -> AbstractContextManager[object]:
        """A context without gradients in eval mode, unless an input requires them."""
        asked = self.training or any(x.requires_grad for x in given)
        return torch.set_grad_enabled(torch.is_grad_enabled() and asked)
