# %% [markdown]
# # The prefix as a dial
#
# The tokens of Semanticist are ordered: any number of leading tokens, a prefix, decodes to an image. `keep` is that
# number. The models are toy models of Fashion-MNIST.

# %%
import os

import matplotlib.pyplot as plt
import torch

import tok1d
from tok1d.data import fashion_mnist

NUM, MEASURED = (2, 8) if os.environ.get("TOK1D_SMALL") else (8, 200)
generator, tokenizer = tok1d.load_pair("fashion-mnist-semanticist")
pictures = list(fashion_mnist.load("test")[0][20 : 20 + NUM])
tokens = tokenizer.encode(pictures)

# %% [markdown]
# ## More tokens, more detail
#
# The first row is the original; then 1, 2, 4, 8 and 16 tokens.

# %%
KEEP = (1, 2, 4, 8, 16)
rows = [image for keep in KEEP for image in tokenizer.decode(tokens, keep=keep)]
tok1d.show([*tokenizer.preprocess(pictures), *rows], columns=NUM)

# %% [markdown]
# ## Measured
#
# PSNR of test images by number of tokens. Each figure carries its protocol, which `found` prints.

# %%
found = tok1d.evaluate(tokenizer, "fashion_mnist", num=MEASURED, keep=list(KEEP), metrics=["psnr"])
figure, axes = plt.subplots(figsize=(5, 3))
axes.plot(KEEP, [found.value("psnr", keep=keep) for keep in KEEP], marker="o")
axes.set(xlabel="tokens kept", ylabel="PSNR, dB", xscale="log", xticks=KEEP, xticklabels=KEEP)
figure.tight_layout()

# %% [markdown]
# ## The first tokens of one image, the rest of another
#
# Column i has the first 0, 1, 4 and 16 tokens of image i, and the others of image i + 1. They show what the tokens of
# this toy model carry: each changes a few patches of the image.

# %%
left, right = tokens[:-1], tokens[1:]
mixed = [torch.cat([left[:, :k], right[:, k:]], dim=1) for k in (0, 1, 4, 16)]
tok1d.show(torch.cat([tokenizer.decode(each) for each in mixed]), columns=NUM - 1)

# %% [markdown]
# ## Generation, token by token
#
# `stream` yields the images after each new token. The columns are 1, 2, 4, 8 and 16 tokens.

# %%
grown = list(generator.stream(["Sneaker", "Dress"], num=1, seed=1))
tok1d.show([grown[k - 1][i] for i in range(2) for k in KEEP], columns=len(KEEP))
