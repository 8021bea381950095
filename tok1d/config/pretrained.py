"""Methods of all models whose work is done in higher layers: loading, saving, and sampling of pictures.

As in `registry`, what does the work is named here and imported when it is used, because it needs torch and the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tok1d.config.registry import attribute

if TYPE_CHECKING:
    import torch

HUB = "tok1d.zoo.hub"


class Pretrained:
    """Loading and saving in the conventions of huggingface_hub, for tokenizers and generators."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """A model of this class, in eval mode, from a folder, a bundled name, or OWNER/NAME on the Hugging Face hub.

            >>> import tok1d
            >>> tok1d.Tokenizer.from_pretrained("fashion-mnist-semanticist").spec.length
            16

        Args:
            device: "cpu", "cuda", "mps", or "auto" for the first of cuda, mps and cpu that is there.
            dtype: type of the weights in memory; default: float32.
            revision: branch, tag or commit of the hub's repository.
            cache_dir: folder of downloads; default: that of huggingface_hub.
            local_files_only: use downloaded files only, without the network.

        Raises:
            WeightsError: no such model, or files that do not fit it.
            InputError: a model of another class.
        """
        return attribute(f"{HUB}:from_pretrained")(
            cls,
            name,
            device=device,
            dtype=dtype,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )

    def save_pretrained(self, folder: str | Path, *, licence: str | None = None) -> Path:
        """Write config.json, model.safetensors and README.md into a folder, and return it.

        `from_pretrained` of the folder gives the same model, bit for bit (weights are stored as float32). A generator
        whose tokenizer is in another folder takes a copy of it along, in the subfolder tokenizer.

        Args:
            licence: of the weights, such as "cc-by-4.0"; default: that of the card, which may state none.

        Raises:
            WeightsError: the folder exists and is not a model folder, or cannot be written.
        """
        return attribute(f"{HUB}:save_pretrained")(self, folder, licence=licence)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload of a tok1d model",
        licence: str | None = None,
    ) -> str:
        """Upload the model, as `save_pretrained` writes it, to the Hugging Face hub; returns the address of the commit.

        Args:
            repo_id: OWNER/NAME; created if it is not there.
            private: whether a new repository is private.
            token: of the hub; default: that of `hf auth login`.
            revision: branch to upload to.
            licence: see `save_pretrained`.

        Raises:
            WeightsError: huggingface_hub is missing, or the hub refuses.
        """
        options: Mapping[str, object] = {
            "private": private,
            "token": token,
            "revision": revision,
            "commit_message": commit_message,
            "licence": licence,
        }
        return attribute(f"{HUB}:push_to_hub")(self, repo_id, **options)
