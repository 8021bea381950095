# %% [markdown]
# # Reading a training
#
# The files of a run folder, its curves, its warnings, and the replay of a step that stopped a training.

# %%
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt

import tok1d
from tok1d.cli import app
from tok1d.errors import Tok1dError

SMALL = bool(os.environ.get("TOK1D_SMALL"))
STEPS, IMAGES = (6, 8) if SMALL else (200, 1500)
OUT = Path("runs/examples")
every = {"steps": STEPS, "log_every": max(1, STEPS // 50), "evaluate_every": STEPS // 2, "warmup": STEPS // 6}
short = {"train": every, "evaluate": {"num_images": IMAGES}, "quiet": True}
training = tok1d.train("fashion_mnist/maetok_ae", out=OUT / "read", **short)
sorted(path.name for path in training.folder.iterdir())

# %% [markdown]
# ## The curves
#
# `log.jsonl` has one line of JSON for each logged step. `tok1d compare RUN` draws them beside the stored curve of the
# recipe, if there is one.

# %%
lines = [json.loads(line) for line in (training.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
print(lines[0])
figure, axes = plt.subplots(1, 2, figsize=(9, 3))
for panel, key in zip(axes, ("loss_reconstruction", "lr"), strict=True):
    points = [(line["step"], line[key]) for line in lines if key in line]
    panel.plot(*zip(*points, strict=True))
    panel.set(xlabel="step", ylabel=key)
axes[0].set_yscale("log")
figure.tight_layout()

# %% [markdown]
# ## The measurement at the end
#
# `report.json` has each metric with its whole protocol.

# %%
training

# %% [markdown]
# ## A warning
#
# Averaged weights (EMA) with a decay too slow for so short a training. The warning says that the pictures of the first
# preview are not yet those of the model. Others name a loss that jumps, an unused codebook, or a discriminator whose
# loss is 0.

# %%
few = {**every, "steps": 6, "warmup": 0, "preview_every": 3, "evaluate_every": 0}
slow = {**few, "ema": 0.999, "ema_ramp": False}
again = tok1d.train("fashion_mnist/maetok_ae", out=OUT / "slow", overwrite=True, **{**short, "train": slow})

# %% [markdown]
# ## A training that fails
#
# The learning rate is far too high. The run stops at the first step whose loss or gradient is not finite, before it is
# used, and the error names likely causes.

# %%
bad = {**few, "lr": 1e18, "optimizer": "adamw", "clip": 0}
try:
    tok1d.train("fashion_mnist/maetok_ae", out=OUT / "bad", overwrite=True, **{**short, "train": bad})
except Tok1dError as error:
    print(error)

# %% [markdown]
# ## Replay
#
# The run folder holds a dump of that step: weights, images and random numbers. `tok1d replay DUMP` repeats it, here on
# the same settings. With `KEY=VALUE` behind it, it repeats the step with other ones, such as `train.precision=fp32`.

# %%
dump = next((OUT / "bad").glob("nonfinite-step-*.pt"))
code = app.run(["replay", str(dump)])
