"""A picture through an exported tokenizer with numpy, Pillow and onnxruntime alone, without torch and tok1d:

    tok1d export-onnx fashion-mnist-semanticist --out exported
    python examples/onnx_without_torch.py exported photo.png 4 decoded.png

4 is the number of leading tokens to decode from; unordered tokens are decoded from all. A tokenizer with a condition
receives its null condition. Noise is that of numpy, which tok1d does not use.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

folder, keep = Path(sys.argv[1]), int(sys.argv[3])
about = json.loads((folder / "tok1d-onnx.json").read_text(encoding="utf-8"))
sessions = {name: onnxruntime.InferenceSession(folder / part["file"]) for name, part in about["parts"].items()}


def run(part, **given):
    """The output of a part for one image; numbers are repeated to the shape of their input."""
    given.setdefault("condition", (about["condition"] or {}).get("null"))
    inputs = {}
    for each in about["parts"][part]["inputs"]:
        inputs[each["name"]] = np.full([1, *each["shape"][1:]], given[each["name"]], each["dtype"])
    return sessions[part].run(None, inputs)[0]


def prepared(path):
    """The picture as (1, C, H, W) in [0, 1]: about["pictures"]["steps"]."""
    how, image = about["pictures"], Image.open(path).convert("RGBA")
    size, background = how["inner_size"], (*how["background"], 255)
    image = Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
    side = max if how["crop"] == "fit" else min
    mode = "L" if how["channels"] == 1 else "RGB"
    image, square = image.convert(mode), Image.new("RGBA", (size, size), background).convert(mode)
    while side(image.size) >= 2 * size:
        image = image.resize((max(image.width // 2, 1), max(image.height // 2, 1)), Image.Resampling.BOX)
    scaled = [max(round(length * size / side(image.size)), 1) for length in image.size]
    square.paste(image.resize(scaled, Image.Resampling.BICUBIC), [int((size - length) / 2) for length in scaled])
    pixels = np.asarray(square, np.float32).reshape(size, size, -1).transpose(2, 0, 1) / 255
    return np.pad(pixels, ((0, 0), (how["pad"],) * 2, (how["pad"],) * 2))[None]


tokens = run("encoder", images=prepared(sys.argv[2]))
if "sampler" in about:  # a flow decoder: the loop around its network
    x = np.random.default_rng(0).standard_normal(about["sampler"]["shape"])[None] * about["sampler"]["temperature"]
    for each in about["sampler"]["steps"]:
        prediction = run("decoder", x=x, t=each["t"], tokens=tokens, keep=keep)
        x = x + each["step"] * (each["of_prediction"] * prediction + each["of_x"] * x)
    decoded = np.clip((x + 1) / 2, 0, 1)
else:
    decoded = run("decoder", tokens=tokens, keep=keep)
Image.fromarray((decoded[0] * 255).round().astype(np.uint8).transpose(1, 2, 0).squeeze()).save(sys.argv[4])
