# %% [markdown]
# # Captions to emoji
#
# `emoji-card` is conditioned on words: the names of emoji. It is a toy model, trained for minutes on one CPU core, and
# knows the words of its training captions only.

# %%
import os

import tok1d

SMALL = bool(os.environ.get("TOK1D_SMALL"))
NUM = 1 if SMALL else 6
generator, tokenizer = tok1d.load_pair("emoji-card")
print(generator.card)

# %% [markdown]
# ## One row for each caption

# %%
captions = ["red apple", "grinning face", "blue heart", "automobile"][: 1 if SMALL else 4]
samples = generator.generate(captions, num=NUM, seed=0)
tok1d.show(samples.images, labels=samples.labels, columns=NUM)

# %% [markdown]
# ## Words in new combinations
#
# "green heart" and "blue circle" are names of emoji, "purple apple" is not: its samples are no apples.

# %%
new = ["green heart", "blue circle", "purple apple"][: 1 if SMALL else 3]
samples = generator.generate(new, num=NUM, seed=0)
tok1d.show(samples.images, labels=samples.labels, columns=NUM)

# %% [markdown]
# ## Guidance
#
# Guidance moves the prediction away from the one without a caption. 1 is off. With 2 and 4 the samples are nearer to
# the words and differ less; 8 is too much. One row for each scale.

# %%
rows, labels = [], []
for scale in (1.0, 4.0) if SMALL else (1.0, 2.0, 4.0, 8.0):
    samples = generator.generate("red apple", num=NUM, guidance=scale, seed=0)
    rows += list(samples.images)
    labels += [f"guidance {scale:g}"] * NUM
tok1d.show(rows, labels=labels, columns=NUM)

# %% [markdown]
# ## A word that the model does not know
#
# Such words are named.

# %%
from tok1d.errors import InputError

try:
    generator.generate("qwertz", num=1)
except InputError as error:
    print(error)
