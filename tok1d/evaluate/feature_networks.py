"""The three kinds of feature networks: Inception, pretrained networks of timm, and classifiers trained with tok1d."""

from __future__ import annotations

import hashlib
import io
import re
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tok1d.config.classes import class_names
from tok1d.errors import InputError, WeightsError, reason_of
from tok1d.evaluate.features import INCEPTION, KINDS, Features, FrozenNetwork, to_rgb
from tok1d.evaluate.networks import CNN
from tok1d.zoo.adapters.keymap import read_published
from tok1d.zoo.pretrained.networks import Pretrained, open_pretrained, parse_network
from tok1d.zoo.store import BUNDLED, bundled_names, load
from tok1d.zoo.weights import fingerprint

# Hash of the file of torch-fidelity and pytorch-fid: the weights of TensorFlow's Inception graph of 2015-12-05.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
NO_FIDELITY = "inception: torch-fidelity is not installed; pip install 'tok1d[fidelity]'"
SPATIAL_CHANNELS = 7
SPATIAL_DIM = 17 * 17 * SPATIAL_CHANNELS


class Inception(FrozenNetwork):
    """torch-fidelity's port of the Inception graph with which published FIDs are measured, at 299 pixels.

    Its logits do not include the bias of the last layer, as for the Inception Score of TensorFlow and of the ADM suite.
    The order of its 1008 classes is not that of ImageNet's labels, so it gives no label agreement.
    """

    def __init__(
        self, extractor: nn.Module, name: str, digest: str, *, device: str | torch.device, pad: int = 0
    ) -> None:
        self.extractor = extractor
        super().__init__(
            name, digest, device=device, dim=2048, spatial_dim=SPATIAL_DIM, num_classes=1008, pad=pad, eight_bit=True
        )
        # This branch is TensorFlow's mixed_6/conv after the ReLU, from which the ADM suite computes sFID.
        extractor.get_submodule("Mixed_6d.branch1x1").register_forward_hook(self._keep_maps)
        self._maps: Tensor | None = None

    def _keep_maps(self, module: nn.Module, inputs: tuple[Tensor, ...], maps: Tensor) -> None:
        self._maps = maps[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    def measure(self, images: Tensor) -> Features:
        """Features of images (B, 1 or 3, h, w) in [0, 1]; the network resizes them as TensorFlow 1 did."""
        pooled, logits = self.extractor((to_rgb(images) * 255).round().to(torch.uint8))
        spatial, self._maps = self._maps, None
        return Features(pooled, spatial, logits)


# Images at once: with more, each layer's output is so large that the memory allocator asks the system for new pages,
# which takes longer than the layer.
CPU_BATCH = 4


class TimmNetwork(FrozenNetwork):
    """The pooled features of a pretrained network before its classifier, and its logits if its weights have one.

    For DINOv2 and CLIP these are the class token after the last normalisation. Images are resized, not cropped, to the
    network's size, with antialiasing: bilinearly or bicubically, as in timm; other methods are replaced by bicubic. The
    classes of the logits are not those of the images' labels, so they give no label agreement.
    """

    def __init__(self, found: Pretrained, *, device: str | torch.device, pad: int = 0, eight_bit: bool = True) -> None:
        super().__init__(
            clean_name(found.name.label),
            fingerprint(found.trunk),
            device=device,
            dim=found.dim,
            num_classes=0 if found.head is None else found.head.out_features,
            pad=pad,
            eight_bit=eight_bit,
        )
        self.model, self.size = found.trunk.to(device), found.size
        self.head = None if found.head is None else found.head.to(device)
        self.mode = found.interpolation if found.interpolation in ("bilinear", "bicubic") else "bicubic"
        self.mean, self.std = (torch.tensor(each, device=self.device).view(3, 1, 1) for each in (found.mean, found.std))

    def measure(self, images: Tensor) -> Features:
        """Features of images (B, 1 or 3, h, w) in [0, 1]; on a CPU in parts of `CPU_BATCH`."""
        num = CPU_BATCH if self.device.type == "cpu" else len(images)
        pooled = torch.cat([self._pooled(part) for part in images.split(max(num, 1))])
        return Features(pooled, logits=None if self.head is None else self.head(pooled))

    def _pooled(self, images: Tensor) -> Tensor:
        images = to_rgb(images)
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode=self.mode, antialias=True).clamp(0, 1)
        return self.model((images - self.mean) / self.std).float()


class OwnNetwork(FrozenNetwork):
    """A classifier trained with `tok1d train`: its features, and its logits over the classes of its data."""

    def __init__(self, model: CNN, name: str, *, pad: int = 0, eight_bit: bool = True) -> None:
        config = model.config
        super().__init__(
            name,
            fingerprint(model),
            device=next(model.parameters()).device,
            dim=config.features,
            num_classes=config.num_classes,
            classifies=True,
            image_size=config.image_size,
            channels=config.channels,
            pad=pad,
            eight_bit=eight_bit,
        )
        self.model, self.class_names = model.eval(), class_names(model)

    def measure(self, images: Tensor) -> Features:
        """Features of images (B, C, h, w) in [0, 1] of the classifier's image size; raises DataError for others."""
        if self.model.config.channels == 3:
            images = to_rgb(images)
        pooled = self.model.features(images)
        return Features(pooled, logits=self.model.head(pooled))


def open_inception(
    file: str | None, *, device: str | torch.device, pad: int, eight_bit: bool = True, download: bool = True
) -> Inception:
    """Inception with the published weights, named "inception", or with other weights, named "inception-like".

    Raises:
        WeightsError: torch-fidelity is not installed, or the weights are missing or of another network.
        InputError: eight_bit=False.
    """
    if not eight_bit:
        raise InputError("inception: expected images of 8 bits, got --float (eight_bit=False); leave it out")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise WeightsError(NO_FIDELITY) from None

    path = Path(file) if file else _published_inception(download)
    if not path.is_file():
        raise WeightsError(f"inception:{path}: no such file; expected {INCEPTION_FILE} from torch-fidelity's releases")
    state = read_published(path)
    digest = _sha256(path)
    # The extractor unpickles its file, which can run code. It gets the weights that were read safely instead.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    with torch.random.fork_rng(devices=[]):  # the random initial weights are not used
        try:
            extractor = FeatureExtractorInceptionV3(INCEPTION, ["2048", "logits_unbiased"], buffer)
        except (RuntimeError, ValueError) as error:
            raise WeightsError(
                f"{path}: expected weights of Inception, got those of another network ({reason_of(error)})"
            ) from None
    name = INCEPTION if digest == INCEPTION_SHA256 else f"{INCEPTION}-like"
    return Inception(extractor.to(device).eval(), name, digest, device=device, pad=pad)


def inception_missing() -> str:
    """Why Inception with its published weights cannot be opened without a download, and how to get it; "" if it can."""
    if find_spec("torch_fidelity") is None:
        return NO_FIDELITY
    try:
        _published_inception(download=False)
    except WeightsError as error:
        return str(error)
    return ""


def _published_inception(download: bool) -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir(), "checkpoints", INCEPTION_FILE)
    if path.is_file():
        return path
    why = "got no file"
    if download:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Writes a temporary file, checks its hash and renames it.
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=INCEPTION_SHA256, progress=False)
            return path
        except (OSError, RuntimeError) as error:
            why = f"they could not be downloaded ({reason_of(error)})"
    raise WeightsError(
        f"inception: expected the published weights, {why}; download {URL_INCEPTION_V3} to {path}, or pass "
        "inception:FILE"
    )


def open_own(text: str, *, device: str | torch.device, pad: int, eight_bit: bool | None = None) -> OwnNetwork:
    """A classifier from a model folder or a bundled name; its name is that of the bundled model or of its run.

    Args:
        eight_bit: see `FrozenNetwork`; default: True, for a bundled classifier False.

    Raises:
        WeightsError: no such model, or it is not a classifier.
    """

    model = load(text, device=device)
    if not isinstance(model, CNN):
        raise WeightsError(f"{text}: expected a classifier as feature network, got the model {model.config.name}")
    folder = Path(model.folder)  # type: ignore[arg-type]
    bundled = folder.is_relative_to(BUNDLED.resolve())
    if bundled:
        name = folder.relative_to(BUNDLED.resolve()).as_posix()
    else:
        name = folder.parent.name if folder.name == "model" else folder.name
    return OwnNetwork(model, clean_name(name), pad=pad, eight_bit=not bundled if eight_bit is None else eight_bit)


def clean_name(text: str) -> str:
    """A name of letters, digits, dots, dashes and underscores; "inception" is reserved for the published network."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "model"
    return f"model-{name}" if name.lower() == INCEPTION else name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_network(
    text: str,
    *,
    device: str | torch.device = "cpu",
    pad: int = 0,
    eight_bit: bool | None = None,
    download: bool = True,
) -> FrozenNetwork:
    """Open the feature network that a text names.

    - "inception" or "inception:FILE": torch-fidelity's port of the network of the published FID. With weights other
      than the published ones it is named "inception-like".
    - "efficientnet-lite0": EfficientNet-Lite0 with the ImageNet weights of an installed package.
    - "timm:NAME", "timm:NAME:FILE", "timm:NAME:224" (another image size): a timm network such as DINOv2 or CLIP.
    - "model:FOLDER" or a bundled name such as "fashion-mnist-cnn": a classifier trained with `tok1d train`.

    Args:
        pad: width of the border, in pixels, that is cut off first.
        eight_bit: see `FrozenNetwork`; must be True for Inception. Default: True, except for the bundled classifier,
            which was trained on images that were not rounded.
        download: download missing weights.

    Raises:
        WeightsError: missing weights, or a package that is not installed; the message says how to get them.
        InputError: a text of another form, or a negative `pad`.
    """

    if pad < 0:
        raise InputError(f"pad: expected a border of at least 0 pixels, got {pad}")
    kind, _, rest = text.partition(":")
    if kind == INCEPTION:
        return open_inception(rest or None, device=device, pad=pad, eight_bit=eight_bit is not False, download=download)
    if (named := parse_network(text)) is not None:
        found = open_pretrained(named, download=download)
        return TimmNetwork(found, device=device, pad=pad, eight_bit=eight_bit is not False)
    if kind == "model" and rest:
        return open_own(rest, device=device, pad=pad, eight_bit=eight_bit)
    if text in bundled_names():
        return open_own(text, device=device, pad=pad, eight_bit=eight_bit)
    raise InputError(f"feature network: expected {KINDS}, got {text!r}")
