# %% [markdown]
# # Three tokenizers in ten minutes
#
# A 1D tokenizer encodes an image as a short sequence of tokens and decodes it from them. A generator makes new
# sequences. This tour loads the three bundled pairs of Fashion-MNIST, toy models trained for minutes on a CPU.

# %%
import os

import tok1d
from tok1d.data import fashion_mnist

NUM = 2 if os.environ.get("TOK1D_SMALL") else 8
pixels, labels = fashion_mnist.load("test")
pictures = list(pixels[:NUM])
tok1d.models()

# %% [markdown]
# ## The originals
#
# `encode` takes PIL images, paths, arrays and tensors, and prepares them as in the model's training.

# %%
tok1d.show(pictures)

# %% [markdown]
# ## Semanticist: ordered tokens, diffusion decoder
#
# The tokens are ordered: the first ones carry most. The rows are decoded from 1, 4 and all 16 tokens of 16 numbers.

# %%
semanticist = tok1d.load("fashion-mnist-semanticist")
tokens = semanticist.encode(pictures)
print(tuple(tokens.shape))
rows = [image for keep in (1, 4, 16) for image in semanticist.decode(tokens, keep=keep)]
tok1d.show(rows, columns=NUM)

# %% [markdown]
# ## MAETok: unordered tokens, deterministic decoder
#
# Trained to fill in masked patches. The decoder needs all tokens and computes the image in one pass.

# %%
maetok = tok1d.load("fashion-mnist-maetok")
tok1d.show(maetok.decode(maetok.encode(pictures)), columns=NUM)

# %% [markdown]
# ## SMAP: the class on both sides
#
# Encoder and decoder receive the class, so that the tokens need not carry it. The first row is decoded from the class
# alone, the second from the class and all tokens.

# %%
import torch

smap = tok1d.load("fashion-mnist-smap")
classes = torch.as_tensor(labels[:NUM])
tokens = smap.encode(pictures, classes)
rows = [image for keep in (0, smap.spec.length) for image in smap.decode(tokens, classes, keep=keep)]
tok1d.show(rows, columns=NUM)

# %% [markdown]
# ## Their generators
#
# Each makes tokens of a class, and its tokenizer decodes them: epsilon-LlamaGen and CARD one token after the other, SiT
# all tokens together. One row for each generator.

# %%
rows = []
for name in ("fashion-mnist-semanticist", "fashion-mnist-sit", "fashion-mnist-card"):
    generator, _ = tok1d.load_pair(name)
    rows += list(generator.generate(["Sneaker", "Dress"], num=max(1, NUM // 2), seed=0).images)
tok1d.show(rows, columns=len(rows) // 3)
