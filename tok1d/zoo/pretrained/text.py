"""Captions as model inputs and targets: frozen text encoders (transformers), and bags of words for MAETok."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from tok1d.config.condition import ConditionConfig
from tok1d.errors import ConfigError, InputError, WeightsError, reason_of
from tok1d.losses.masked import bag_of_words

IDF_CAPTIONS = 100_000  # document frequencies are counted on at most this number of captions, evenly spaced
KEPT_BYTES = 2**28  # largest total size of the embeddings that are cached in memory


T = TypeVar("T")


class SubWords(Protocol):
    """What is used of a tokenizer of transformers."""

    pad_token_id: int | None

    def __len__(self) -> int: ...

    def __call__(self, text: list[str], **options: object) -> Mapping[str, Any]: ...


class TextConfig(Protocol):
    """What is used of the configuration of a text encoder of transformers."""

    hidden_size: int


class TextStates(Protocol):
    """What is used of the output of a text encoder of transformers."""

    last_hidden_state: Tensor


class TextNetwork(Protocol):
    """What is used of a text encoder of transformers."""

    config: TextConfig

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor) -> TextStates: ...

    def to(self, device: torch.device | str, /) -> object: ...

    def float(self) -> Self: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = True) -> Self: ...


class CaptionWords:
    """Computes weighted bags of sub-words from captions, the auxiliary target "text" of MAETok.

    Args:
        name: a transformers tokenizer, a hub name or a local folder; CLIP's BPE has 49408 ids.
        vocab_size: width of a bag, at least the number of ids of the tokenizer.

    Raises:
        ConfigError: transformers is not installed, or `vocab_size` is too small.
        WeightsError: there is no such tokenizer.
    """

    def __init__(self, name: str, vocab_size: int) -> None:
        self.tokenizer, self.vocab_size = from_transformers(name, "tokenizer", _tokenizer), vocab_size
        self.idf: Tensor | None = None
        count = len(self.tokenizer)
        if count > vocab_size:
            raise ConfigError(f"model.auxiliary: tokenizer {name} has {count} ids, set dim to that, got {vocab_size}")

    def ids(self, captions: Sequence[str]) -> Tensor:
        """The ids of captions without special tokens, (B, T) int64, padded with -1 to the longest caption."""
        rows = self.tokenizer(list(captions), add_special_tokens=False, verbose=False)["input_ids"]
        return torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=-1
        )

    def fit(self, captions: Sequence[str]) -> None:
        """Set the weights of words to their inverse document frequencies in these captions.

        The weight is log((1 + N) / (1 + n)) for a word in n of N captions. Empty captions do not count.
        """
        captions = [caption for caption in captions if caption.strip()]
        if len(captions) > IDF_CAPTIONS:
            captions = [captions[i * len(captions) // IDF_CAPTIONS] for i in range(IDF_CAPTIONS)]
        counts = torch.zeros(self.vocab_size)
        for start in range(0, len(captions), 1000):
            ids = self.ids(captions[start : start + 1000])
            rows = torch.arange(len(ids))[:, None].expand_as(ids)[ids >= 0]
            pairs = torch.unique(torch.stack([rows, ids[ids >= 0]]), dim=1)  # a word counts once per caption
            counts += torch.bincount(pairs[1], minlength=self.vocab_size)
        self.idf = ((1 + len(captions)) / (1 + counts)).log()

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, vocab_size): the weights of the words in each caption, 1 before `fit`, and 0 for all other words."""
        words = bag_of_words(self.ids(captions), self.vocab_size)
        return words if self.idf is None else words * self.idf


class TextEncoder:
    """A frozen text encoder, such as T5's encoder or CLIP's text tower: captions to the states of its last layer.

    It is loaded at first use, and threads may share it. It is not an `nn.Module`, so its weights are not part of a
    model that holds it.

    Args:
        name: a transformers model with its tokenizer, a hub name or a local folder.
        max_length: number T of sub-words of every caption, with special tokens; longer captions are truncated.
    """

    def __init__(self, name: str, max_length: int = 77) -> None:
        if max_length < 1:
            raise ConfigError(f"text encoder {name}: expected a max_length of at least 1, got {max_length}")
        self.name, self.max_length = name, max_length
        self._parts: tuple[SubWords, TextNetwork] | None = None  # transformers' tokenizer and model
        self._lock = threading.RLock()  # transformers' fast tokenizers are not thread-safe

    @property
    def dim(self) -> int:
        """The width E of the embeddings; loads the encoder."""
        return int(self._load()[1].config.hidden_size)

    @torch.no_grad()
    def encode(self, captions: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Embeddings (B, T, E) float32, 0 for padding, and a mask (B, T) bool, False for padding.

        A caption's embeddings do not depend on the other captions. The encoder is moved to `device` and stays there.

        Raises:
            ConfigError: transformers is not installed, another kind of model, or a `max_length` it does not accept.
            WeightsError: there is no such model, or some of its weights are missing.
            InputError: no list of captions, or an empty one.
        """
        if isinstance(captions, str) or not captions:
            raise InputError(f"text encoder {self.name}: expected a list of captions, got {captions!r}")
        with self._lock:
            tokenizer, network = self._load()
            network.to(device)
            found = tokenizer(
                list(captions), padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
            )
            ids, mask = (found[key].to(device) for key in ("input_ids", "attention_mask"))
            with torch.autocast(torch.device(device).type, enabled=False):
                states = network(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        return states * mask[..., None], mask.bool()

    def _load(self) -> tuple[SubWords, TextNetwork]:
        with self._lock:
            return self._read()

    def _read(self) -> tuple[SubWords, TextNetwork]:
        if self._parts is None:
            tokenizer, network = (
                from_transformers(self.name, "tokenizer", _tokenizer),
                from_transformers(self.name, "text encoder", _encoder),
            )
            if tokenizer.pad_token_id is None:
                raise ConfigError(f"text encoder {self.name}: its tokenizer has no padding, expected another encoder")
            limit = getattr(network.config, "max_position_embeddings", None)
            if limit is not None and self.max_length > limit:
                raise ConfigError(
                    f"text encoder {self.name}: expected a max_length up to {limit}, got {self.max_length}"
                )
            self._parts = tokenizer, network.float().eval().requires_grad_(False)
        return self._parts


@lru_cache(maxsize=2)
def text_encoder(name: str, max_length: int) -> TextEncoder:
    """The encoder of that name and length; the last two are cached, so that a process loads each once."""
    return TextEncoder(name, max_length)


class CaptionEmbeddings:
    """Captions to the embeddings (B, T, E) that a model is conditioned on; zeros for a blank caption.

    If the embeddings of all different captions fit into `KEPT_BYTES`, each is encoded once, on its own, and cached.
    Otherwise every batch is encoded. In both cases the result depends only on the batch, so a resumed run gives
    the same result as an uninterrupted one.

    Args:
        condition: the encoder, T and E.
        captions: all captions that will be encoded.

    Raises:
        ConfigError: no encoder is named, its states have another width, or as `TextEncoder.encode`.
        WeightsError: as `TextEncoder.encode`.
    """

    def __init__(self, condition: ConditionConfig, captions: Sequence[str]) -> None:
        condition.check_encoder()
        self.condition, self.encoder = condition, text_encoder(condition.encoder, condition.length)
        if self.encoder.dim != condition.dim:
            raise ConfigError(
                f"model.condition.dim: expected {self.encoder.dim}, the width of {condition.encoder}, "
                f"got {condition.dim}"
            )
        most = KEPT_BYTES // (4 * condition.length * condition.dim)
        self.kept: dict[str, Tensor] | None = {} if len(set(captions)) <= most else None

    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """(B, T, E) float32 on the device, to which the encoder is moved."""
        rows = torch.zeros(len(captions), self.condition.length, self.condition.dim, device=device)
        places = [i for i, caption in enumerate(captions) if caption.strip()]
        if places and self.kept is None:
            rows[places] = self.encoder.encode([captions[i] for i in places], device)[0]
        elif places:
            rows[places] = torch.stack([self._kept(captions[i], device) for i in places])
        return rows

    def _kept(self, caption: str, device: torch.device | str) -> Tensor:
        assert self.kept is not None
        if caption not in self.kept:
            self.kept[caption] = self.encoder.encode([caption], device)[0][0]
        return self.kept[caption].to(device)


def from_transformers(name: str, what: str, read: Callable[[ModuleType, str], T]) -> T:
    """What `read` loads with transformers; its errors become one line that begins with `what`."""
    try:
        import transformers
    except ImportError:
        raise ConfigError(f"{what} {name}: transformers is not installed; pip install 'tok1d[text]'") from None
    try:
        with (
            _quiet(transformers.utils.logging),
            torch.random.fork_rng(devices=[]),
        ):  # transformers initialises weights at random before it loads them
            return read(transformers, name)
    except (ConfigError, WeightsError):
        raise
    except Exception as error:  # of the network, the hub or the disk: transformers passes on what its libraries raise
        raise WeightsError(
            f"{what} {name}: transformers cannot read it ({reason_of(error)}); expected a hub name, or without a "
            "network a local folder that save_pretrained wrote"
        ) from None


@contextmanager
def _quiet(logging: ModuleType) -> Iterator[None]:
    """Switch off transformers' progress bars and messages; errors are reported by the caller."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _tokenizer(transformers: ModuleType, name: str) -> SubWords:
    return transformers.AutoTokenizer.from_pretrained(name)


def _encoder(transformers: ModuleType, name: str) -> TextNetwork:
    """The text encoder of a model: the encoder of an encoder-decoder, the text tower of CLIP."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES as KNOWN

    kind = transformers.AutoConfig.from_pretrained(name).model_type
    if kind != "clip" and kind not in KNOWN:
        raise ConfigError(f"text encoder {name}: expected T5, CLIP, BERT or a similar text encoder, got {kind}")
    cls = transformers.CLIPTextModel if kind == "clip" else transformers.AutoModelForTextEncoding
    network, found = cls.from_pretrained(name, output_loading_info=True)
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise WeightsError(f"text encoder {name}: {len(missing)} weights are missing, such as {missing[0]}")
    return network
