# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Segment a folder: masks, pictures, early exit, uncertainty, findings, DICOM
#
# One user requires one mask on the grid of the CT, a hospital a thousand of them, overnight. This tutorial
# shows how to
#
# 1. segment a folder of scans, each on its own grid, with pictures to look at,
# 2. let a slice stop at the first level that is confident about it,
# 3. see where the network was uncertain, and in which scan to look first,
# 4. get a table of what was found, and the mask as DICOM beside the series that it came from,
# 5. do the same in code of your own.
#
# It takes about half a minute on one CPU core and downloads nothing. The network is that of the liver bundle:
# two-dimensional, trained on slices of real CT. The scans are synthetic, so no number below says anything
# about patients.

# %%
import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
import torch
from matplotlib import pyplot as plt
from monai.inferers import SliceInferer
from monai.metrics import compute_dice
from monai.transforms import Compose, Orientationd, ScaleIntensityRanged, Spacingd
from PIL import Image

from monai_unetpp import UNetPlusPlus, VolumeInferer, load_network
from monai_unetpp.bundle import copy_bundle
from monai_unetpp.data.phantoms import write_phantoms
from monai_unetpp.inferers import EarlyExitSliceInferer
from monai_unetpp.pictures import View, draw_plane
from monai_unetpp.segment import segment
from monai_unetpp.transforms import LoadImageAndLabeld, SaveImageAtomicd

output = Path("output") / "04"
bundle = copy_bundle("liver", output, overwrite=True)

# %% [markdown]
# ## A folder
#
# Three CTs of the abdomen; every second slice will do here. The last is made noisy, as if it had been taken
# with a low dose: does the network notice?

# %%
data = write_phantoms(output / "data", "liver", cases=3, seed=4, overwrite=True).parent
scans, references = data / "imagesTr", data / "labelsTr"
for path in [*scans.iterdir(), *references.iterdir()]:
    image = nib.load(path)
    steps = [2 if axis in "SI" else 1 for axis in nib.aff2axcodes(image.affine)]
    nib.save(image.slicer[tuple(slice(None, None, step) for step in steps)], path)

noisy = scans / "liver_002.nii.gz"
image = nib.load(noisy)
hu = np.asarray(image.dataobj) + np.random.default_rng(0).normal(0, 40, image.shape)
nib.save(nib.Nifti1Image(hu.astype(np.int16), image.affine), noisy)

for path in sorted(scans.iterdir()):
    image = nib.load(path)
    spacing = " x ".join(f"{mm:.1f}" for mm in image.header.get_zooms())
    print(f"{path.name}: {image.shape}, {spacing} mm, axes {''.join(nib.aff2axcodes(image.affine))}")

# %% [markdown]
# ## One command
#
# ```
# python -m monai_unetpp segment -i scans -o masks --bundle bundles/liver --overlay slices \
#     --sheets --uncertainty
# ```
#
# From Python:

# %%
masks = output / "masks"
outcomes = segment(
    scans, masks, bundle, overlays=["slices"], level="auto", sheets=True, uncertainty=True, overwrite=True
)
for outcome in outcomes:
    print(Path(outcome.image).name, outcome.state, f"{outcome.seconds:.1f} s", outcome.reason)
print(*sorted(path.name for path in masks.glob("liver_000*")))

# %% [markdown]
# `overlays` names JSON files that are merged over the bundle's `inference.json`: `slices` is the
# two-dimensional network. `level="auto"` selects the level that the weights were calibrated for, here L3. A
# second run skips finished scans unless `overwrite` is set; a scan that cannot be read stops no other, and
# its reason is reported.
#
# Is the mask where the scan is?


# %%
def dice(mask_path):
    """Dice of the liver with tumours, on the grid of the file."""
    name = mask_path.name.replace("_seg", "")
    mask, reference = nib.load(mask_path), nib.load(references / name)
    assert np.allclose(mask.affine, nib.load(scans / name).affine)
    pair = (torch.as_tensor(np.asarray(m.dataobj) > 0)[None, None].float() for m in (mask, reference))
    return compute_dice(*pair).item()


full = {path.name: dice(path) for path in sorted(masks.glob("*_seg.nii.gz"))}
for name, value in full.items():
    print(f"{name}: Dice {value:.3f}")

# %% [markdown]
# One picture per scan lies beside the masks, to leaf through in the morning:

# %%
Image.open(masks / "liver_000_sheet.png").convert("RGB")

# %% [markdown]
# ## Early exit
#
# L1 is a segmentation already, and each level costs one more diagonal of nodes. A slice about which L1 is
# confident can stop there. The threshold was calibrated on held-out scans, for a loss of at most 0.005 Dice,
# and is stored beside the weights; `levels.json` calibrates yours (`calibrate_exit` in code).

# %%
early = segment(scans, output / "early", bundle, overlays=["slices", "early_exit"], overwrite=True)
for outcome in early:
    name = Path(outcome.image).name.replace(".nii.gz", "_seg.nii.gz")
    stopped = ", ".join(f"L{k} {n}" for k, n in enumerate(outcome.exits, start=1))
    print(f"{name}: slices that stopped at {stopped}; Dice {dice(output / 'early' / name):.3f}")

# %% [markdown]
# On the noisy scan early exit loses far more than the 0.005 that it was calibrated for: it is unlike any of
# those scans, and a shallow level that is confident can be wrong. Calibrate on scans like yours.

# %% [markdown]
# ## Where to look first
#
# `--uncertainty` has ordered the scans by their expected error, by the network's own probabilities, greatest
# first.

# %%
with (masks / "uncertainty.csv").open(newline="") as file:
    ranking = [(Path(row["scan"]).name, float(row["uncertainty"])) for row in csv.DictReader(file)]
for name, expected in ranking:
    print(f"{name}: expected error {expected:.3f}, error {1 - full[name.replace('.', '_seg.', 1)]:.3f}")

# %% [markdown]
# The noisy one is first. The number ranks scans; it does not predict how large the error is: here it was
# larger.
#
# Within a scan, the heads are several segmentations from one pass, and it pays to look where they disagree.
# The map was written beside the mask.

# %%
name = "liver_002"
paths = {"image": scans / f"{name}.nii.gz", "reference": references / f"{name}.nii.gz"}
paths |= {"mask": masks / f"{name}_seg.nii.gz", "uncertainty": masks / f"{name}_uncertainty.nii.gz"}
volumes = {key: np.asarray(nib.load(path).dataobj) for key, path in paths.items()}
wrong = (volumes["mask"] > 0) != (volumes["reference"] > 0)
apart = volumes["uncertainty"]
print(f"disagreement where the mask is wrong {apart[wrong].mean():.3f}, elsewhere {apart[~wrong].mean():.4f}")

image = nib.load(paths["image"])
view = View(image.affine, image.header.get_zooms())  # turned as radiologists look at it
n = int(view.profile(view.turn(wrong)).argmax())  # the slice with most errors
ct, reference, mask, disagreement = (view.plane(view.turn(volume), n) for volume in volumes.values())
with plt.style.context("dark_background"):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    draw_plane(left, ct, {"white": reference > 0, "#ff5252": mask > 0}, (-150, 250), view.aspect)
    left.set_title("what was found red, the reference white")
    shown = right.imshow(disagreement, cmap="inferno", origin="lower", aspect=view.aspect)
    right.contour(reference > 0, levels=[0.5], colors="white", linewidths=1)
    right.set_title("where the heads disagree")
    right.axis("off")
    figure.colorbar(shown, ax=right, shrink=0.8)
    figure.savefig(output / "uncertainty.png", dpi=110)

# %% [markdown]
# ## Findings, and DICOM
#
# An archive holds DICOM series, so this cell makes one of the first scan: an image per slice, with its place.

# %%
image = sitk.DICOMOrient(sitk.Cast(sitk.ReadImage(str(scans / "liver_000.nii.gz")), sitk.sitkInt16), "LPS")
series = output / "series" / "liver_000"
series.mkdir(parents=True, exist_ok=True)
shared = {
    "0008|0060": "CT",
    "0010|0010": "Phantom",
    "0020|000d": "2.25.1",  # study, series and frame of reference; the writer makes the UIDs of the images
    "0020|000e": "2.25.2",
    "0020|0052": "2.25.3",
    "0020|0037": "\\".join(str(n) for n in (1, 0, 0, 0, 1, 0)),
    "0018|0050": str(image.GetSpacing()[2]),
}
writer = sitk.ImageFileWriter()
writer.KeepOriginalImageUIDOn()
for n in range(image.GetDepth()):
    one = image[:, :, n]
    place = "\\".join(f"{mm:.6g}" for mm in image.TransformIndexToPhysicalPoint((0, 0, n)))
    for tag, value in {
        **shared,
        "0020|0032": place,
        "0020|0013": str(n + 1),
        "0008|0018": f"2.25.4.{n}",
    }.items():
        one.SetMetaData(tag, value)
    writer.SetFileName(str(series / f"{n:03}.dcm"))
    writer.Execute(one)

# %% [markdown]
# ```
# python -m monai_unetpp segment -i series -o findings --bundle bundles/liver --overlay slices \
#     --format nifti dicom-seg --findings --min-volume 1ml --report
# ```
#
# Each connected component is a finding: the liver, and whatever else was taken for liver. What is smaller
# than 1 ml is dropped, from the mask, the DICOM file and the table. The largest component alone, which this
# bundle keeps, is switched off to show it.

# %%
found = output / "findings"
options = {"formats": ["nifti", "dicom-seg"], "findings": True, "min_volume": "1ml", "report": True}
[outcome] = segment(
    series, found, bundle, overlays=["slices"], largest_component=False, overwrite=True, **options
)
for each in outcome.findings:
    axes = f"{each.long_axis_mm:.0f} x {each.short_axis_mm:.0f} mm"
    print(f"{each.finding}: {each.label}, {each.volume_ml:.1f} ml, {axes} in slice {each.slice}, ", end="")
    print(f"mean probability {each.mean_probability:.2f}, border {each.touches_border}")
print(*sorted(path.name for path in found.iterdir() if path.is_file()))

# %% [markdown]
# The liver comes first. `findings.csv` has the rest: centre in patient coordinates, intensities, the UID of
# the image. `report.html` is one page on the whole run. The DICOM Segmentation lies on the images of the
# series and refers to them, so that a viewer shows it over the scan:

# %%
segmentation = pydicom.dcmread(found / "liver_000_seg.dcm")
print(segmentation.SegmentSequence[0].SegmentLabel, "in", segmentation.NumberOfFrames, "frames")
uids = {row["instance_uid"] for row in csv.DictReader((found / "findings.csv").read_text().splitlines())}
images = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
print(
    len(images),
    "images, among them those of the findings:",
    uids <= {i.ReferencedSOPInstanceUID for i in images},
)

# %% [markdown]
# ## In code of your own
#
# These are the same parts in a MONAI script, for a network that you have trained yourself. `VolumeInferer`
# accepts any sliding window of MONAI and returns labels on the grid of the file. It stores a slab of
# probabilities, not the volume: no `Invertd` is required, and a CT of the whole body fits.

# %%
net = UNetPlusPlus(spatial_dims=2, in_channels=1, out_channels=2, channels=(16, 32, 64, 128, 256), strides=2)
net = load_network(net, bundle / "weights" / "slices.pt", level=3)
load = Compose(
    [
        LoadImageAndLabeld("image"),
        Orientationd("image", axcodes="RAS", labels=None),
        Spacingd("image", pixdim=(2, 2, -1), mode="bilinear"),
        ScaleIntensityRanged("image", a_min=0, a_max=255, b_min=0, b_max=1, clip=True),
    ]
)
window = {"roi_size": (192, 192), "spatial_dim": 2, "sw_batch_size": 4, "overlap": 0.5, "mode": "gaussian"}
every_slice = VolumeInferer(SliceInferer(**window), largest_component=True)
stop_early = VolumeInferer(EarlyExitSliceInferer(threshold=0.007, **window), largest_component=True)
save = SaveImageAtomicd("pred", output / "own")

case = load({"image": str(noisy)})
with torch.no_grad():
    labels = every_slice(case["image"][None], net)  # (1, 1, X, Y, Z), uint8
    sooner = stop_early(case["image"][None], net)
save({**case, "pred": labels[0]})
print(tuple(labels.shape), labels.dtype, *(path.name for path in (output / "own").iterdir()))
print(f"voxels that early exit labels otherwise: {(labels != sooner).float().mean():.2%}")

# %% [markdown]
# In three dimensions the windows are `SlidingWindowInferer` and `EarlyExitInferer`; the rest stays the same.
#
# The last cell checks what this page claims:

# %%
assert all(outcome.state == "done" for outcome in [*outcomes, *early])
assert len(full) == 3
assert min(value for name, value in full.items() if not name.startswith("liver_002")) > 0.85
assert ranking[0][0] == noisy.name
assert all(dice(output / "early" / name) > value - 0.02 for name, value in full.items() if "_002" not in name)
assert apart[wrong].mean() > apart[~wrong].mean()
assert np.array_equal(labels[0, 0].numpy(), volumes["mask"])
volume = sum(each.volume_ml for each in outcome.findings)
mask = nib.load(found / "liver_000_seg.nii.gz")
assert np.isclose(volume, np.count_nonzero(mask.dataobj) * np.prod(mask.header.get_zooms()) / 1000)
assert min(each.volume_ml for each in outcome.findings) >= 1
assert np.count_nonzero(segmentation.pixel_array) == np.count_nonzero(mask.dataobj)
assert uids <= {i.ReferencedSOPInstanceUID for i in images}
assert len((masks / "uncertainty.csv").read_text().splitlines()) == 4
