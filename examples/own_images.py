# %% [markdown]
# # Own images: from a folder to samples
#
# Any folder with one subfolder of images per class will do. Here it is drawn: circles, squares and triangles of random
# colours, sizes and places. Both trainings start from the bundled models of emoji, so that 1,000 steps do.
# For a folder of your own set `PHOTOS` to it and `STEPS` to some thousands.

# %%
import os
import random
from pathlib import Path

from PIL import Image, ImageDraw

import tok1d

SMALL = bool(os.environ.get("TOK1D_SMALL"))
STEPS, PER_CLASS = (2, 12) if SMALL else (1000, 100)
PHOTOS = Path("runs/examples/photos")


def draw(kind: str, rng: random.Random) -> Image.Image:
    """A shape on white, 64 x 64 pixels."""
    image = Image.new("RGB", (64, 64), "white")
    colour = tuple(rng.randrange(220) for _ in range(3))
    side = rng.randrange(20, 40)
    x, y = rng.randrange(64 - side), rng.randrange(64 - side)
    box = (x, y, x + side, y + side)
    pen = ImageDraw.Draw(image)
    if kind == "triangle":
        pen.polygon([(x + side // 2, y), (x, y + side), (x + side, y + side)], fill=colour)
    else:
        (pen.ellipse if kind == "circle" else pen.rectangle)(box, fill=colour)
    return image


rng = random.Random(0)
for kind in ("circle", "square", "triangle"):
    (PHOTOS / kind).mkdir(parents=True, exist_ok=True)
    for i in range(PER_CLASS):
        draw(kind, rng).save(PHOTOS / kind / f"{i:03d}.png")
some = sorted(PHOTOS.glob("*/00[0-2].png"))
tok1d.show([Image.open(path) for path in some], columns=9)

# %% [markdown]
# ## The tokenizer
#
# The recipe for own images, in the width of the bundled model whose weights it starts from. The same call resumes an
# interrupted training.

# %%
width = {"dim": 96, "heads": 4}
settings = {"steps": STEPS, "warmup": STEPS // 5, "save_every": 0, "preview_every": 0}
training = tok1d.train(
    "own/maetok",
    out="runs/examples/shapes",
    init_from="emoji-maetok",
    data={"root": PHOTOS},
    model={"encoder": width, "decoder": width, "mask": {"high": 0.1}},  # masks, as emoji-maetok was trained with some
    train=settings,
    quiet=True,
)
training

# %% [markdown]
# Originals, and below them their reconstructions from 16 tokens of 16 numbers:

# %%
tokenizer = training.load()
originals = tokenizer.preprocess([Image.open(path) for path in some])
tok1d.show([*originals, *tokenizer.decode(tokenizer.encode(originals))], columns=len(some))

# %% [markdown]
# ## The generator
#
# It reads the tokens of the training images from a cache, which the call makes, and learns to make sequences of each
# class. After 1,000 steps its samples have, roughly, the shapes of their classes.

# %%
second = tok1d.train(
    "own/sit",
    out="runs/examples/shapes-generator",
    init_from="emoji-sit",
    tokenizer="runs/examples/shapes/model",
    data={"root": PHOTOS},
    model={"dim": 128, "heads": 4},
    train=settings,
    evaluate={"num_samples": 2 if SMALL else 100},
    quiet=True,
)
generator = second.load()
samples = generator.generate(num=1 if SMALL else 8, seed=0, steps=2 if SMALL else 25)
tok1d.show(samples.images, labels=samples.labels)
