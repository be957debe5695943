# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Choose a level and prune
#
# A UNet++ contains a U-Net of every depth. After one training with deep supervision, held-out cases show how
# deep it has to be. This tutorial shows how to
#
# 1. score every level in one pass, and see what each costs,
# 2. choose,
# 3. keep that level alone,
# 4. train the small network further, if you like.
#
# It takes about half a minute on one CPU core and downloads nothing: the CTs are synthetic, so no number
# below says anything about patients. The bundles do the same for 3D volumes by one command, with
# `levels.json`.

# %%
import logging
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib import pyplot as plt
from monai.data import DataLoader, Dataset, load_decathlon_datalist
from monai.inferers import SliceInferer
from monai.transforms import (
    AsDiscreted,
    Compose,
    LoadImaged,
    Orientationd,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    Spacingd,
)
from monai.utils import set_determinism
from PIL import Image

from monai_unetpp import DeepSupervisionDiceLoss, UNetPlusPlus
from monai_unetpp.data.phantoms import write_liver_phantoms

set_determinism(0)
output = Path("output") / "03"

# %% [markdown]
# ## Train, all levels at once
#
# Nine CTs of the abdomen, slices of 64 x 48 pixels of 6 mm; we look for the liver. Six cases are for
# training, three are held out.

# %%
keys = ("image", "label")
load = Compose(
    [
        LoadImaged(keys, ensure_channel_first=True),
        Orientationd(keys, axcodes="LPS", labels=None),
        Spacingd(keys, pixdim=(6, 6, 8), mode=("bilinear", "nearest")),
        ScaleIntensityRanged("image", a_min=-150, a_max=250, b_min=0, b_max=1, clip=True),
        AsDiscreted("label", threshold=1),  # liver and tumour -> 1
        ResizeWithPadOrCropd(keys, spatial_size=(64, 48, -1)),
    ]
)
with TemporaryDirectory() as folder:
    index = write_liver_phantoms(folder, cases=9)
    cases = [load(case) for case in load_decathlon_datalist(index, is_segmentation=True)]

training, held_out = cases[:6], cases[6:]
images, labels = (
    torch.cat([case[key].as_tensor().movedim(-1, 0) for case in training]) for key in keys
)  # (slices, 1, 64, 48)


def train(net, steps, learning_rate):
    loss = DeepSupervisionDiceLoss()  # of a list of heads, or of the one head of a pruned network
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps, power=0.9)
    net.train()
    for _ in range(steps):
        batch = torch.randint(len(images), (6,))
        optimizer.zero_grad()
        loss(net(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    net.eval()


net = UNetPlusPlus(spatial_dims=2, in_channels=1, out_channels=2, channels=(8, 16, 32, 64, 128))
train(net, steps=50, learning_rate=1e-2)

# %% [markdown]
# ## How good is each level, and what does it cost?
#
# `score_levels` accepts any loader and any MONAI inferer. The inferer receives `net.all_heads`, which
# computes all levels in one pass: scoring four of them takes as long as scoring the deepest.

# %%
from monai_unetpp import score_levels
from monai_unetpp.levels import write_levels

validation = DataLoader(Dataset(held_out), batch_size=1)
inferer = SliceInferer(roi_size=(64, 48), spatial_dim=2, sw_batch_size=16)
scores = score_levels(net, validation, inferer, class_labels=["liver"], surface_tolerance=8.0)

for score in scores:
    print(
        f"L{score.level}: Dice {score.dice:.3f}, surface Dice {score.surface_dice:.3f}, "
        f"{score.parameters:,} parameters, {1e3 * score.seconds:.1f} ms a slice, {score.peak_mib:.1f} MiB"
    )

# %% [markdown]
# ## Choose
#
# The choice is the shallowest level within a tolerance of the best. `select_level` logs its reason in one
# line; `write_levels` writes a table, as Markdown and as CSV, and the figure to decide by.

# %%
from monai_unetpp import select_level

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
level = select_level(scores, tolerance=0.02)
title = "Liver in synthetic CT, slices"
write_levels(scores, output, level, tolerance=0.02, title=title, overwrite=True)
print((output / "levels.md").read_text())

# %% [markdown]
# `levels.png`, which it has also written (`draw_levels` gives the figure itself):

# %%
Image.open(output / "levels.png").convert("RGB")

# %% [markdown]
# Three cases are few, and 0.02 of Dice is a decision, not a law. Where a mistake costs more than a second,
# choose a smaller tolerance. Look at single cases as well (`score.dice_per_case`), and at small structures.
#
# ## Keep that level
#
# `prune` returns a network of its own, with the same output bit for bit.

# %%
from monai_unetpp import prune

example = images[40:41]
small = prune(net, level)
with torch.no_grad():
    assert torch.equal(small(example), net.all_heads(example)[-level])

torch.save(net.state_dict(), output / "full.pt")
torch.save(small.state_dict(), output / f"L{level}.pt")
for name in ("full.pt", f"L{level}.pt"):
    print(f"{name}: {(output / name).stat().st_size / 1024:.0f} KiB")

# %% [markdown]
# The figure shows what is kept and what is removed: node `X^{i,j}` of row `i` and column `j` belongs to level
# `k` if `i + j <= k`. The area of a node is its number of parameters. Most of them lie at the bottom, where a
# network is wide, so a shallow level has few. Its time shrinks less, as the table shows, because the rows
# above have more pixels.


# %%
def place(key):
    """Row and column of the node that a parameter belongs to; heads have none."""
    room, name = key.split(".")[:2]
    return (int(name), 0) if room == "encoder" else tuple(int(n) for n in name.split("_")[1:])


sizes = Counter()
for key, parameter in net.named_parameters():
    if not key.startswith("heads"):
        sizes[place(key)] += parameter.numel()

figure, axes = plt.subplots(figsize=(6.4, 5), layout="constrained")
for (i, j), size in sizes.items():
    colour = "#d1495b" if i + j <= level else "#c3ccd6"
    sources = [(i - 1, 0)] if j == 0 and i else [(i, n) for n in range(j)] + [(i + 1, j - 1)] * (j > 0)
    for row, column in sources:
        bend = 0.0 if row != i or column == j - 1 else -0.22  # long skips go around the nodes between
        arrow = {"arrowstyle": "-", "color": colour, "connectionstyle": f"arc3,rad={bend}"}
        axes.annotate("", (j, -i), (column, -row), arrowprops=arrow, zorder=1)
    axes.scatter(j, -i, s=max(3000 * size / max(sizes.values()), 15), color=colour, zorder=2)
    axes.annotate(f"{size:,}", (j + 0.07, -i - 0.24), fontsize=8, color="0.35")
axes.set_title(
    f"L{level}, {100 * scores[level - 1].parameters / scores[-1].parameters:.0f} % of L4", loc="left"
)
axes.set(xlim=(-0.5, 4.5), ylim=(-4.6, 0.6), xlabel="column j", ylabel="row i", aspect="equal")
axes.set_xticks(range(5))
axes.set_yticks(range(-4, 1), range(4, -1, -1))
axes.spines[:].set_visible(False)
axes.tick_params(length=0)
figure.savefig(output / "kept.png", dpi=100)

# %% [markdown]
# Tutorial 05 is about forms other than weights: TorchScript, `torch.export` and ONNX.

# %% [markdown]
# ## Train further
#
# A pruned network is an ordinary `UNetPlusPlus` with one head. `load_network` makes one from the file: it
# reads the level from the weights.

# %%
from monai_unetpp import load_network

blank = UNetPlusPlus(spatial_dims=2, in_channels=1, out_channels=2, channels=(8, 16, 32, 64, 128))
small = load_network(blank, output / f"L{level}.pt")
print(f"L{small.depth}, {sum(p.numel() for p in small.parameters()):,} parameters")


def mean_dice(network):
    hits = sizes = 0.0
    for batch in validation:
        with torch.no_grad():
            pred = inferer(batch["image"], network).argmax(dim=1, keepdim=True)
        hits += 2 * (pred * batch["label"]).sum().item()
        sizes += (pred + batch["label"]).sum().item()
    return hits / sizes


before = mean_dice(small)
train(small, steps=20, learning_rate=1e-3)
after = mean_dice(small)
print(f"Dice over all held-out voxels: {before:.3f} before, {after:.3f} after")

# %% [markdown]
# The last cell checks what this page claims:

# %%
best = max(score.dice for score in scores)
chosen = scores[level - 1]
assert chosen.dice >= best - 0.02
assert level < 4
assert chosen.parameters < scores[-1].parameters / 4
assert chosen.seconds < scores[-1].seconds
assert all(a.multiply_adds < b.multiply_adds for a, b in pairwise(scores))
assert (output / f"L{level}.pt").stat().st_size < (output / "full.pt").stat().st_size / 4
assert after > before - 0.02
for name in ("levels.png", "kept.png"):
    assert (output / name).is_file()
