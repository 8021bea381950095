"""A trained tokenizer as the start of training at another image size."""

from __future__ import annotations

from dataclasses import replace

import torch

from tok1d.tokenizers.semanticist import Semanticist


def resized(model: Semanticist, image_size: int) -> Semanticist:
    """A new tokenizer for square images of `image_size` pixels, to be trained further.

    The encoder's patch positions are resampled bicubically, the decoder's fixed ones are computed, all other
    weights are copied. Reading and painting other sizes needs none of this: `encode` and `decode` do it on the fly,
    with the same result.

    Raises:
        ConfigError: a size that the patches do not divide.
    """
    config = replace(model.config, image_size=image_size)
    config.check()
    with torch.random.fork_rng(devices=[]):  # the draws of the initial weights are thrown away
        new = Semanticist(config)
    state = dict(model.state_dict())
    side = image_size // config.encoder.patch
    state["encoder.positions"] = model.encoder.table(side, side).detach()
    new.load_state_dict(state)
    new.latent_space = model.latent_space  # it may be loaded already
    return new.to(model.decoder.null_tokens).train(model.training)
