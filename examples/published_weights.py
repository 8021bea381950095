# %% [markdown]
# # Published weights
#
# `tok1d convert FORMAT FILE` turns a published file into a model folder. Set `TOK1D_WEIGHTS` to the file of MAETok's
# published tokenizer to convert it. Without it, this example writes a stand-in: **the weights of the small bundled
# model under the published names, not published weights**. The layout of the file, the conversion and its checks are
# the same.

# %%
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import tok1d
from tok1d.data import fashion_mnist
from tok1d.zoo.adapters import maetok
from tok1d.zoo.convert import convert

OUT = Path("runs/examples/published")
OUT.mkdir(parents=True, exist_ok=True)
given = os.environ.get("TOK1D_WEIGHTS")
weights = Path(given) if given else OUT / "stand-in.safetensors"
bundled = tok1d.load("fashion-mnist-maetok")
if not given:
    save_file({key: value.contiguous() for key, value in maetok.to_published(bundled.state_dict()).items()}, weights)
published = load_file(weights) if weights.suffix == ".safetensors" else torch.load(weights, map_location="cpu")
print(f"{weights.name}: {len(published)} entries, the first:")
for key in list(published)[:6]:
    print(f"  {key:40s} {tuple(getattr(published[key], 'shape', ()))}")

# %% [markdown]
# ## Convert
#
# As `tok1d convert maetok-tokenizer FILE --out FOLDER`. Sizes are read from the weights; what a file does not say, such
# as the number of heads of another width than the published ones, is given as `key=value`.

# %%
options = [] if given else ["encoder_heads=4", "decoder_heads=4"]
folder = convert("maetok-tokenizer", weights, OUT / "model", options)
tokenizer = tok1d.load(folder)
print(tokenizer.config)

# %% [markdown]
# ## Check
#
# The card says what was not in the file and assumed. Originals, and below them the reconstructions:

# %%
print(tokenizer.card.trained["assumed"])
pictures = list(fashion_mnist.load("test")[0][:8])
x = tokenizer.preprocess(pictures)
decoded = tokenizer.decode(tokenizer.encode(x))
tok1d.show([*x, *decoded], columns=8)

# %% [markdown]
# The converted stand-in and the model that it was made from give the same images:

# %%
if not given:
    print("largest difference:", (decoded - bundled.decode(bundled.encode(x))).abs().max().item())

# %% [markdown]
# ## What is refused
#
# A file of another layout is refused; a missing or unexpected weight is an error, not a warning.

# %%
from tok1d.errors import Tok1dError

broken = {key: value for key, value in published.items() if not key.endswith("blocks.0.attn.qkv.weight")}
save_file({key: value.contiguous() for key, value in broken.items()}, OUT / "broken.safetensors")
try:
    convert("maetok-tokenizer", OUT / "broken.safetensors", OUT / "broken", options)
except Tok1dError as error:
    print(error)
