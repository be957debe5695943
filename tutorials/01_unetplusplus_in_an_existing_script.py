# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # UNet++ in an existing MONAI script
#
# You have a script with MONAI's `BasicUNetPlusPlus`, a training loop of your own, and weights that took a
# while to train. This tutorial shows how to
#
# 1. change two lines, and keep the weights,
# 2. continue the training, all levels at once,
# 3. compare the levels on the same slice,
# 4. keep the one that is deep enough.
#
# It takes about half a minute on one CPU core and downloads nothing: the CTs are synthetic, so no number
# below says anything about patients.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import torch
from monai.data import load_decathlon_datalist
from monai.inferers import SliceInferer
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import BasicUNetPlusPlus
from monai.transforms import (
    AsDiscreted,
    Compose,
    LoadImaged,
    Orientationd,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    Spacingd,
    ToTensord,
)
from monai.utils import set_determinism

from monai_unetpp.data.phantoms import write_liver_phantoms

set_determinism(0)
output = Path("output") / "01"
output.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The script as it was
#
# Nine CTs of the abdomen, voxels of 4 x 4 x 8 mm, 80 x 64 pixels a slice. We look for the liver, tumours
# included. A 2D network learns from the slices of six cases; three cases are held out.

# %%
keys = ("image", "label")
load = Compose(
    [
        LoadImaged(keys, ensure_channel_first=True),
        Orientationd(keys, axcodes="LPS", labels=None),
        Spacingd(keys, pixdim=(4, 4, 8), mode=("bilinear", "nearest")),
        ScaleIntensityRanged("image", a_min=-150, a_max=250, b_min=0, b_max=1, clip=True),
        AsDiscreted("label", threshold=1),  # liver and tumour -> 1
        ResizeWithPadOrCropd(keys, spatial_size=(80, 64, -1)),
        ToTensord(keys, track_meta=False),
    ]
)
with TemporaryDirectory() as folder:
    index = write_liver_phantoms(folder, cases=9)
    cases = [load(case) for case in load_decathlon_datalist(index, is_segmentation=True)]

training, held_out = cases[:6], cases[6:]
images = torch.cat([case["image"].movedim(-1, 0) for case in training])  # (slices, 1, 80, 64)
labels = torch.cat([case["label"].movedim(-1, 0) for case in training])
print(f"{len(images)} slices to learn from, {len(held_out)} held-out cases")


# %% [markdown]
# The training loop works for any network, and so do the metric and the inferer, which applies a 2D network to
# a 3D volume slice by slice.


# %%
def train(net, loss, steps):
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps, power=0.9)
    for _ in range(steps):
        batch = torch.randint(len(images), (4,))
        optimizer.zero_grad()
        loss(net(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    net.eval()


inferer = SliceInferer(roi_size=(80, 64), spatial_dim=2, sw_batch_size=16)


def mean_dice(volumes):
    """Score one volume of logits per held-out case."""
    metric = DiceMetric(include_background=False, num_classes=2)
    for logits, case in zip(volumes, held_out, strict=True):
        metric(logits.argmax(dim=1, keepdim=True), case["label"][None])
    return metric.aggregate().item()


# %% [markdown]
# MONAI's network always returns a list of heads, shallowest first. So the script takes the mean of the loss
# over that list, and selects `[-1]` wherever it requires a prediction. Twenty steps stand for your long
# training.

# %%
theirs = BasicUNetPlusPlus(
    spatial_dims=2, in_channels=1, out_channels=2, features=(8, 16, 32, 64, 128, 8), deep_supervision=True
)
dice_ce = DiceCELoss(to_onehot_y=True, softmax=True)
train(theirs, lambda heads, label: sum(dice_ce(head, label) for head in heads) / len(heads), steps=20)

with torch.no_grad():
    before = mean_dice([inferer(case["image"][None], lambda x: theirs(x)[-1]) for case in held_out])
print(f"BasicUNetPlusPlus, held-out Dice: {before:.3f}")

# %% [markdown]
# ## Two lines change
#
# ```diff
# -from monai.networks.nets import BasicUNetPlusPlus
# +from monai_unetpp import UNetPlusPlus
#
# -net = BasicUNetPlusPlus(spatial_dims=2, ..., features=(8, 16, 32, 64, 128, 8), deep_supervision=True)
# +net = UNetPlusPlus(spatial_dims=2, ..., channels=(8, 16, 32, 64, 128))
# ```
#
# and every `[-1]` is removed: in evaluation the network returns one tensor, in training a list, *deepest
# first*.

# %%
from monai_unetpp import UNetPlusPlus

net = UNetPlusPlus(spatial_dims=2, in_channels=1, out_channels=2, channels=(8, 16, 32, 64, 128))
x = images[:1]
print("training:  ", [tuple(head.shape) for head in net.train()(x)])
print("evaluation:", tuple(net.eval()(x).shape))

# %% [markdown]
# That network starts from scratch. To keep what has been trained, load the weights into MONAI's network as
# before, and convert it:

# %%
from monai_unetpp import from_basic_unet_plus_plus

net = from_basic_unet_plus_plus(theirs)
with torch.no_grad():
    shallow_first, deep_first = theirs(x), net.all_heads(x)
    after = mean_dice([inferer(case["image"][None], net) for case in held_out])
print(f"UNetPlusPlus, held-out Dice: {after:.3f}")

assert isinstance(net(x), torch.Tensor)
for old, new in zip(reversed(shallow_first), deep_first, strict=True):
    torch.testing.assert_close(new, old)  # every head, not only the last
assert abs(after - before) < 1e-4

# %% [markdown]
# ## Continue the training
#
# `DeepSupervisionDiceLoss` is the mean over all heads that the script computed by hand. Its
# `weights="halving"`, and MONAI's own `DeepSupervisionLoss`, give the first head of the list the largest
# weight: here that is the deepest, as intended.

# %%
from monai_unetpp import DeepSupervisionDiceLoss

train(net, DeepSupervisionDiceLoss(), steps=55)

# %% [markdown]
# ## One network, four depths
#
# Level `k` is a complete U-Net of `k` steps down. `all_heads` computes all four in one pass, and the inferer
# returns one volume for each.

# %%
with torch.no_grad():
    heads = [inferer(case["image"][None], net.all_heads) for case in held_out]  # per case: L4, L3, L2, L1

levels = [1, 2, 3, 4]
volumes = {k: [case_heads[-k] for case_heads in heads] for k in levels}
dice = {k: mean_dice(volumes[k]) for k in levels}
print("held-out Dice:", ", ".join(f"L{k} {dice[k]:.3f}" for k in levels))

# %% [markdown]
# This is the slice with most liver in it, of the first held-out case. The white line is the reference, the
# liver according to each level is blue. When this tutorial was written, L1, which sees the smallest
# surroundings of a pixel, mistook parts of the stomach and the spleen for liver; the deeper levels did not.

# %%
image, label = held_out[0]["image"][0], held_out[0]["label"][0]  # (80, 64, slices) each
z = int(label.sum(dim=(0, 1)).argmax())


def at_z(volume):
    return volume[..., z].T.numpy()  # rows run from front to back


def draw(ax, title):
    ax.imshow(at_z(image), cmap="gray", vmin=0.2, vmax=0.9, interpolation="bicubic")
    ax.set_title(title, fontsize=15)
    ax.axis("off")


with plt.style.context("dark_background"):
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    draw(axes[0, 0], "CT")
    draw(axes[0, 1], "reference")
    for ax, k in zip(axes.flat[2:], levels, strict=True):
        draw(ax, f"L{k}: Dice {dice[k]:.2f}")
        liver = volumes[k][0].softmax(dim=1)[0, 1]
        ax.contourf(at_z(liver), levels=[0.5, 1], colors="deepskyblue", alpha=0.45)
    for ax in axes.flat[1:]:
        ax.contour(at_z(label), levels=[0.5], colors="white", linewidths=1.5)
    figure.supxlabel("Dice: mean of the three held-out cases")
    figure.savefig(output / "levels.png", dpi=120)

# %% [markdown]
# ## Keep the level that is deep enough
#
# `net.level` is a dial: evaluation computes that level and no node beyond it. `prune` makes the level a
# network of its own, with its share of the weights and the same output bit for bit.

# %%
from monai_unetpp import prune

with torch.no_grad():
    deep_first = net.all_heads(x)
    for k in levels:
        net.level = k
        assert torch.equal(net(x), deep_first[-k])
    net.level = 4

    small = prune(net, 2)
    assert torch.equal(small(x), deep_first[-2])


def parameters(net):
    return sum(p.numel() for p in net.parameters())


print(f"L4: {parameters(net):,} parameters; L2: {parameters(small):,}")

# %% [markdown]
# Only your own held-out data show which level is deep enough. On these phantoms the first is not, and beyond
# the second there is hardly anything to gain, because their liver is a simple shape. The last cell checks
# what this page claims:

# %%
assert parameters(small) < parameters(net) / 10
assert dice[4] > before
assert dice[1] > 0.65
assert min(dice[2], dice[3], dice[4]) > max(0.8, dice[1])
assert dice[4] - dice[2] < 0.04
assert (output / "levels.png").is_file()
