# %% [markdown]
# # A new tokenizer
#
# [my_tokenizer.py](my_tokenizer.py) defines a tokenizer outside the package: finite scalar quantisation between two
# ViTs. It has a configuration, `encode`, `decode`, `losses` and a `spec`, and `tok1d.register` gives it a name. After
# the import, recipes, commands and functions know it.

# %%
import os
import sys

import tok1d
from tok1d.data import fashion_mnist

sys.path.insert(0, "examples")
import my_tokenizer

SMALL = bool(os.environ.get("TOK1D_SMALL"))
STEPS = 2 if SMALL else 1000
print(my_tokenizer.MyTokenizer.__doc__)
print(my_tokenizer.MyConfig())

# %% [markdown]
# ## Train it
#
# [my_tokenizer.yaml](my_tokenizer.yaml) is its recipe. Optimizer, data, log, checkpoints, exact resume and the
# measurement at the end are those of every training. The recipe has 2,000 steps, this call fewer.

# %%
training = tok1d.train(
    "examples/my_tokenizer.yaml",
    out="runs/examples/mine",
    train={"steps": STEPS, "warmup": min(100, STEPS - 1)},
    evaluate={"num_images": 8 if SMALL else 1500},
    quiet=True,
)
training

# %% [markdown]
# ## Use it
#
# Originals, and below them the images decoded from 8 tokens of 8 channels with 5 values each: 149 bits.

# %%
import torch

model = training.load()
x = torch.as_tensor(fashion_mnist.load("test")[0][:8])[:, None] / 255
with torch.no_grad():
    tokens = model.encode(x)
    pictures = model.decode(tokens)
print("values of the tokens:", sorted({round(value, 2) for value in tokens.flatten().tolist()}))
tok1d.show([*x, *pictures], columns=8)

# %% [markdown]
# ## Change it
#
# A field of the configuration is a setting of the recipe, with its range checked:

# %%
from tok1d.errors import ConfigError

try:
    tok1d.train("examples/my_tokenizer.yaml", model={"levels": 2})
except ConfigError as error:
    print(error)
