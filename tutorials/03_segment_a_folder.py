# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Segment a folder: masks, pictures, early exit, doubt
#
# A person with a CT wants a mask that overlays; a hospital wants a thousand, overnight. Here is how to
#
# 1. segment a folder of scans, each on its own grid, with pictures to look at,
# 2. let a window stop at the first level that is sure of it,
# 3. see where the network was unsure.
#
# It takes about two minutes on one CPU core and downloads nothing: the CTs are synthetic, so no number below
# says anything about patients. On the command line the same is
# `python -m monai_unetpp segment -i scans -o masks --bundle bundles/liver`.

# %%
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset, decollate_batch, load_decathlon_datalist
from monai.inferers import SlidingWindowInferer
from monai.metrics import compute_dice
from monai.transforms import (
    AsDiscreted,
    Compose,
    Orientationd,
    RandCropByPosNegLabeld,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)
from monai.utils import set_determinism

from monai_unetpp import (
    DeepSupervisionDiceLoss,
    EarlyExitInferer,
    UNetPlusPlus,
    VolumeInferer,
)
from monai_unetpp.data import write_phantoms
from monai_unetpp.levels import calibrate_exit
from monai_unetpp.pictures import draw_volume
from monai_unetpp.transforms import LoadImageAndLabeld, SaveImageAtomicd

set_determinism(0)
output = Path("output") / "03"

# %% [markdown]
# ## A network
#
# Eight CTs of the abdomen at 6 mm, half a minute of training, two cases held back. Liver against all else.

# %%
keys = ["image", "label"]
load = [
    LoadImageAndLabeld(keys, out_channels=3, allow_missing_keys=True),
    Orientationd(keys, axcodes="RAS", labels=None, allow_missing_keys=True),
    Spacingd(keys, pixdim=(6, 6, 6), mode=("bilinear", "nearest"), allow_missing_keys=True),
    ScaleIntensityRanged("image", a_min=-150, a_max=250, b_min=0, b_max=1, clip=True),
    AsDiscreted("label", threshold=1, allow_missing_keys=True),  # liver and tumour -> 1
]
index = write_phantoms(output / "data", "liver", cases=8, overwrite=True)
files = load_decathlon_datalist(index, is_segmentation=True)
pad = SpatialPadd(keys, spatial_size=(32, 32, 32))
crop = RandCropByPosNegLabeld(keys, "label", spatial_size=(32, 32, 32), pos=2, neg=1, num_samples=4)
cached = CacheDataset(files[:6], Compose([*load, pad, crop]), progress=False)
train = DataLoader(cached, batch_size=2, shuffle=True)

net = UNetPlusPlus(spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16, 32, 64), strides=2)
loss = DeepSupervisionDiceLoss(include_background=False, batch=True)
optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=20 * len(train))
for _ in range(20):
    for batch in train:
        optimizer.zero_grad()
        loss(net(batch["image"]), batch["label"]).backward()
        optimizer.step()
        scheduler.step()
net.eval()

# %% [markdown]
# ## Masks on the grid of the file
#
# `VolumeInferer` takes any sliding window of MONAI, and returns labels where the file's voxels are. It
# holds a slab of probabilities, not the volume.

# %%
windows = SlidingWindowInferer(roi_size=(32, 32, 32), sw_batch_size=4, overlap=0.5, mode="gaussian")
segment = VolumeInferer(windows)
save = SaveImageAtomicd("pred", output / "masks")
scans = DataLoader(Dataset([{"image": case["image"]} for case in files[6:]], Compose(load)), batch_size=1)
for batch in scans:
    labels = segment(batch["image"], net)
    for item in decollate_batch({**batch, "pred": labels}):
        save(item)
        name = Path(item["image"].meta["filename_or_obj"])
        picture = output / "masks" / name.name.replace(".nii.gz", ".png")
        draw_volume(picture, name, item["pred"][0], window=(-150, 250))


# %%
def dice(mask: np.ndarray, case: dict[str, str]) -> float:
    """Dice of the liver with tumours, on the grid of the file."""
    reference = np.asarray(nib.load(case["label"]).dataobj) > 0
    pair = (torch.as_tensor(m)[None, None].float() for m in (mask, reference))
    return float(compute_dice(*pair))


for case in files[6:]:
    name = Path(case["image"]).name.replace(".nii.gz", "")
    mask = nib.load(output / "masks" / f"{name}_seg.nii.gz")
    assert np.allclose(mask.affine, nib.load(case["image"]).affine)
    print(f"{name}: Dice {dice(np.asarray(mask.dataobj), case):.3f}")

# %% [markdown]
# ## Early exit
#
# L1 is a segmentation, and L2 costs one diagonal of nodes more. A window that L1 is sure of can stop there.
# How sure is sure enough, held-back cases tell, for a loss of Dice that you state.

# %%
validation = DataLoader(Dataset(files[6:], Compose(load)), batch_size=1)
found = calibrate_exit(net, validation, windows, tolerance=0.005)
print(f"threshold {found.threshold}: Dice {found.dice:.3f}, without early exit {found.full_dice:.3f}")

early = EarlyExitInferer(
    threshold=found.threshold, roi_size=(32, 32, 32), sw_batch_size=4, overlap=0.5, mode="gaussian"
)
for batch, case in zip(scans, files[6:], strict=True):
    early.reset()
    both = [VolumeInferer(inferer)(batch["image"], net)[0, 0].numpy() for inferer in (windows, early)]
    print(
        "windows that stopped at L1, L2, L3:", *early.exits, "Dice", *(f"{dice(m, case):.3f}" for m in both)
    )
assert found.full_dice - found.dice <= 0.005

# %% [markdown]
# ## Where the network was unsure
#
# The heads are three segmentations of one pass. Where they disagree, look. The error of the whole case that
# the deepest head's probabilities let expect, 1 less the Dice, is a number by which to rank cases.

# %%
batch = next(iter(scans))
found_there = segment.segment(batch["image"], net, probability=1, uncertainty=True)
unsure = found_there.uncertainty[0, 0].numpy()
wrong = found_there.labels[0, 0].numpy() != (np.asarray(nib.load(files[6]["label"]).dataobj) > 0)
print(f"disagreement where the mask is wrong {unsure[wrong].mean():.3f}, else {unsure[~wrong].mean():.4f}")
print(f"the case: {found_there.case_uncertainty:.3f}")
assert unsure[wrong].mean() > unsure[~wrong].mean()

# %%
from matplotlib import pyplot as plt

from monai_unetpp.pictures import View

labels = found_there.labels[0]
view = View(labels.affine, labels.pixdim.tolist())  # as radiologists look at it
image, mask, doubt = (
    view.turn(v) for v in (np.asarray(nib.load(files[6]["image"]).dataobj), labels[0], unsure)
)
n = int(view.profile(mask).argmax())
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for axis, volume, cmap in zip(axes, (image, doubt), ("gray", "magma"), strict=True):
    axis.imshow(view.plane(volume, n), cmap=cmap, origin="lower", aspect=view.aspect)
    axis.contour(view.plane(mask, n), levels=[0.5], colors="#ff5252", linewidths=1)
    axis.axis("off")
axes[0].set_title("CT, and what was found")
axes[1].set_title("where the heads disagree")
figure.savefig(output / "unsure.png", dpi=110)
print(*sorted(path.name for path in output.iterdir()))
