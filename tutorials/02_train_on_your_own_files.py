# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Train on your own files
#
# You have a folder of CTs and a folder of label maps, as NIfTI, in no particular layout. This tutorial shows
# how to
#
# 1. look at them before any training,
# 2. write the one file that assigns a label to each image,
# 3. train with the liver bundle, whatever your classes are, and read its log,
# 4. score the held-out cases,
# 5. segment a scan with what you have trained.
#
# It takes about half a minute on one CPU core and downloads nothing: the CTs are synthetic, so no number
# below says anything about patients. The last section lists what to change for real ones.

# %%
import json
import logging
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib import pyplot as plt
from monai.bundle import ConfigWorkflow
from PIL import Image

from monai_unetpp.bundle import copy_bundle
from monai_unetpp.data import read_dataset, split_cases
from monai_unetpp.data.phantoms import liver_phantom
from monai_unetpp.data.phantoms.parts import Part
from monai_unetpp.pictures import View

output = Path("output") / "02"

# %% [markdown]
# ## The files
#
# The next cell stands for your own work: eight CTs in `images`, and in `labels` a map for each, on which
# somebody has drawn liver (1), spleen (2) and kidneys (3). With files of your own, omit it.

# %%
home = output / "clinic"
(home / "images").mkdir(parents=True, exist_ok=True)
(home / "labels").mkdir(exist_ok=True)
organs = {"liver": [Part.LIVER, Part.TUMOUR], "spleen": [Part.SPLEEN], "kidneys": [Part.KIDNEY]}
for number in range(8):
    phantom = liver_phantom(np.random.default_rng([7, number]))
    label = np.zeros_like(phantom.label)
    for value, parts in enumerate(organs.values(), start=1):
        label[np.isin(phantom.parts, parts)] = value
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), home / f"images/scan-{number}.nii.gz")
    nib.save(nib.Nifti1Image(label, phantom.affine), home / f"labels/scan-{number}-organs.nii.gz")

# %% [markdown]
# ## Look first
#
# An hour spent here saves a week of training. Do image and label have the same size? Which values do the
# labels have? How large are the voxels, and how bright is what you look for?

# %%
pairs = [
    (image, home / "labels" / image.name.replace(".nii.gz", "-organs.nii.gz"))
    for image in sorted(home.glob("images/*.nii.gz"))
]
for image_path, label_path in pairs:
    image, label = nib.load(image_path), nib.load(label_path)
    assert image.shape == label.shape, f"{label_path} does not fit {image_path}"
    assert np.allclose(image.affine, label.affine, atol=0.01), f"{label_path} lies elsewhere"
    values = np.asarray(label.dataobj)
    low, high = np.percentile(np.asarray(image.dataobj)[values > 0], [1, 99])
    size = " x ".join(f"{n:3}" for n in image.shape)
    spacing = " x ".join(f"{mm:.1f}" for mm in image.header.get_zooms())
    axes = "".join(nib.aff2axcodes(image.affine))
    print(
        f"{image_path.name}: {size} voxels of {spacing} mm, axes {axes};",
        f"labels {np.unique(values).tolist()}, {low:.0f} to {high:.0f} HU in them",
    )

# %% [markdown]
# Sizes, spacings and directions of the axes differ, as they do in a hospital. That is fine: the bundle turns
# and resamples every case to the same grid while loading. It refuses what it cannot repair, with the name of
# the file: a label of another size or place, values that are not a class, voxels that are NaN.

# %% [markdown]
# ## `dataset.json`
#
# The bundles read the layout of the Medical Segmentation Decathlon. Its centre is this file; paths are
# relative to it, so nothing has to be copied or renamed.

# %%
dataset = {
    "labels": {"0": "background", "1": "liver", "2": "spleen", "3": "kidneys"},
    "training": [
        {key: str(path.relative_to(home)) for key, path in zip(("image", "label"), pair, strict=True)}
        for pair in pairs
    ],
}
(home / "dataset.json").write_text(json.dumps(dataset, indent=4))
print(json.dumps(dataset["training"][0]))

# %% [markdown]
# Several scans of one patient? Give their entries the same `"scan"`, such as the patient's number: then they
# are all in the training set or all held out.

# %% [markdown]
# ## A bundle of your own
#
# A bundle is a folder of JSON files: a training, an evaluation, an inference. Copy the one that is closest
# (`python -m monai_unetpp bundle liver --out .`), and put what differs into a file of its own. This overlay
# is merged over the others, so that training and inference cannot disagree about the grid or the network.

# %%
bundle = copy_bundle("liver", output, overwrite=True)

settings = {
    "_desc_": "Liver, spleen and kidneys, coarse enough for a CPU.",
    "out_channels": 4,  # with the background
    "pixdim": [8.0, 8.0, 8.0],  # mm
    "roi_size": [32, 32, 24],  # voxels of a patch, 256 x 256 x 192 mm
    "channels": [8, 16, 32],  # width of each row: three rows, so levels L1 and L2
}
with (bundle / "organs.json").open("w") as file:
    json.dump(settings, file, indent=4)

# %% [markdown]
# ## Train
#
# On the command line this is
#
# ```
# python -m monai.bundle run --config_file "['liver/train.json','liver/organs.json']" --bundle_root liver \
#     --dataset_dir clinic --max_epochs 16 --val_interval 4 --learning_rate 0.02
# ```
#
# In Python, the same:


# %%
def run(*names, **keys):
    workflow = ConfigWorkflow(
        [str(bundle / f"{name}.json") for name in names],
        workflow_type="train",
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(home),
        **keys,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
for quiet in ("ignite", "monai.bundle.workflows", "tensorboard"):
    logging.getLogger(quiet).setLevel(logging.ERROR)
logging.getLogger("train").disabled = True  # two lines an epoch: the curves below show them
run("train", "organs", max_epochs=16, val_interval=4, learning_rate=0.02)

# %% [markdown]
# Every fourth epoch (by default every fifth) the held-out cases are scored, and the best weights so far are
# saved as `models/model.pt`. About a quarter of the cases is held out; `seed` and the names decide which. If
# the machine stops, the same command with `--resume True` resumes from the last epoch.
#
# ## Read the log
#
# The bundle writes curves to `runs`, for `tensorboard --logdir liver/runs`. The next cell draws them without
# it.

# %%
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

log = EventAccumulator(str(bundle / "runs"))
log.Reload()


def curve(axes, tag, label):
    events = log.Scalars(tag)
    axes.plot([e.step for e in events], [e.value for e in events], marker=".", label=label)


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for level in (2, 1):
    curve(left, f"loss/L{level}", f"L{level}")
left.set(xlabel="epoch", ylabel="loss, training patches", ylim=(0, None))
for name in organs:
    curve(right, f"val_dice_{name}", name)
right.set(xlabel="epoch", ylabel="Dice, held-out cases", ylim=(0, 1), xticks=range(4, 17, 4))
for axes in (left, right):
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig(output / "curves.png", dpi=100)

# %% [markdown]
# All levels are trained at once, so there is a loss for each. Such curves are read as follows:
#
# - *The loss does not fall*: the learning rate, or labels that do not lie on their images.
# - *The loss falls, the Dice of held-out cases does not rise with it*: too few cases. More cases help most,
#   then `augmentation`.
# - *One class stays at 0*: it is too small for `pixdim`, or rare in the patches.
# - *Some still rise at the end, as spleen and kidneys here*: train for longer.

# %% [markdown]
# ## Score
#
# `evaluate.json` is merged over the training and scores the held-out cases at full resolution, on the grid of
# their files. It writes tables and a picture to `eval`.

# %%
run("train", "organs", "evaluate")
print((bundle / "eval" / "val_mean_dice_summary.csv").read_text().expandtabs(12))

# %% [markdown]
# Classes that are named as lesions, such as a tumour, are also scored lesion by lesion. The picture shows a
# slice of each class.

# %%
Image.open(bundle / "eval" / "cases.png").convert("RGB")

# %% [markdown]
# ## Segment a scan
#
# ```
# python -m monai_unetpp segment -i clinic/images/scan-4.nii.gz -o masks --bundle liver --overlay organs
# ```
#
# or from Python, for a held-out case:

# %%
from monai_unetpp.segment import segment

_, held_out = split_cases(read_dataset(home, out_channels=4).cases, val_fraction=0.25, seed=0)
scan = Path(held_out[0]["image"])
(outcome,) = segment(scan, output / "masks", bundle, overlays=["organs"], overwrite=True)
mask_path = output / "masks" / scan.name.replace(".nii.gz", "_seg.nii.gz")
print(outcome.state, mask_path.name)

# %% [markdown]
# The prediction is coloured, the white line is the reference.

# %%
image, mask, label = (nib.load(path) for path in (scan, mask_path, held_out[0]["label"]))
assert np.allclose(mask.affine, image.affine)
view = View(image.affine, image.header.get_zooms())  # turned as radiologists look at it
ct, found, reference = (view.turn(np.asarray(volume.dataobj)) for volume in (image, mask, label))
there = np.flatnonzero(view.profile(reference > 0))
colours = ["#ff6b6b", "#4dabf7", "#ffd43b"]

with plt.style.context("dark_background"):
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    for ax, n in zip(axes, np.quantile(there, [0.2, 0.4, 0.6, 0.8]).round().astype(int), strict=True):
        ax.imshow(view.plane(ct, n), cmap="gray", vmin=-150, vmax=250, origin="lower", aspect=view.aspect)
        for value, colour in enumerate(colours, start=1):
            ax.contourf(view.plane(found, n) == value, levels=[0.5, 1], colors=colour, alpha=0.5)
            if (view.plane(reference, n) == value).any():
                ax.contour(view.plane(reference, n) == value, levels=[0.5], colors="white", linewidths=1)
        ax.axis("off")
    figure.legend(
        handles=[plt.Rectangle((0, 0), 1, 1, color=c, label=o) for c, o in zip(colours, organs, strict=True)],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    figure.savefig(output / "organs.png", dpi=100)

# %% [markdown]
# ## With real data
#
# - `pixdim`: 1.5 to 3 mm for organs. The smallest structure should be a few voxels wide, and voxels much
#   finer than those of the scans are of no use.
# - `hu_range`: the range seen in the first look, with a margin; -1000 to 400 for structures in the lung. For
#   anything but CT set `hounsfield` to false.
# - `roi_size`: as large as memory allows, 96 to 128 on a GPU. A patch should show where in the body it is.
# - `channels`: 32 to 512, five rows, on a GPU. Superfluous levels are removed after the training (tutorial
#   03).
# - `max_epochs`: hundreds, until the curves are flat, with the default `learning_rate` of 0.003.
# - `augmentation`: empty here; `msd.json` of the liver bundle has a set to begin with.
# - `cache_rate`: the share of cases kept in memory. If they do not fit, the error states the share that does.
#
# A GPU is used where there is one. `msd.json` contains a recipe for one, and stands between the two:
# `"['liver/train.json','liver/msd.json','liver/organs.json']"`. It has not been run to its end yet.
#
# Two held-out cases prove little. With few cases, train several times with another `seed` each, and look at
# the spread before you trust a difference.

# %% [markdown]
# The last cell checks what this page claims:

# %%
assert len(held_out) == 2
assert log.Scalars("train_loss")[-1].value < 0.7 * log.Scalars("train_loss")[0].value
dice = {name: log.Scalars(f"val_dice_{name}")[-1].value for name in organs}
assert dice["liver"] > 0.8, dice
assert min(dice.values()) > 0.5, dice
for name in ("curves.png", "organs.png"):
    assert (output / name).is_file()
