# SPDX-License-Identifier: Apache-2.0
"""Draw liver_ct.png: the liver in TotalSegmentator's public test CT, and print its Dice.

    monai-unetpp segment -i example_ct.nii.gz -o OUT --bundle bundles/liver --overlay slices
    python docs/figures/liver_ct.py example_ct.nii.gz OUT/example_ct_seg.nii.gz liver.nii.gz

writes it beside this file. The CT and the mask of the liver (example_seg/liver.nii.gz) are in
tests/reference_files of https://github.com/wasserth/TotalSegmentator, which is licensed under Apache-2.0; the
data set that they belong to is licensed under CC BY 4.0. Cite Wasserthal et al. 2023,
https://doi.org/10.1148/ryai.230024.
"""

import argparse
import logging
from pathlib import Path

import torch
from matplotlib.figure import Figure
from monai.metrics import DiceMetric

from monai_unetpp.pictures import View, display_window, draw_plane
from monai_unetpp.readers import volume_loader

REFERENCE, PREDICTION = "#ffffff", "#ff5252"
SHARES = (0.3, 0.55, 0.85)  # of the slices with liver, from the feet
MARGIN = 0.18  # inches, for a line of text


def main() -> None:
    """Read the three volumes, print the Dice, and draw three slices."""
    parser = argparse.ArgumentParser(description="Draw liver_ct.png.")
    parser.add_argument("ct", type=Path, help="example_ct.nii.gz")
    parser.add_argument("mask", type=Path, help="mask that segment wrote")
    parser.add_argument("reference", type=Path, help="mask of the liver, or a map of organs")
    parser.add_argument("--label", type=int, default=1, help="liver in the reference (%(default)s)")
    args = parser.parse_args()
    load = volume_loader()
    ct = load(args.ct)[0]
    mask, reference = load(args.mask)[0] == 1, load(args.reference)[0] == args.label
    dice = DiceMetric()(mask[None, None].float(), reference[None, None].float()).item()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.info(f"Dice {dice:.4f}")
    draw(ct, mask, reference, dice).savefig(Path(__file__).with_name("liver_ct.png"))


def draw(ct: torch.Tensor, mask: torch.Tensor, reference: torch.Tensor, dice: float) -> Figure:
    """Return three slices with both outlines."""
    view = View(ct.affine, ct.pixdim.tolist())
    turned, found, expected = (view.turn(volume) for volume in (ct, mask, reference))
    inside = view.profile(found).nonzero()[0]
    planes = [
        tuple(
            view.plane(volume, int(inside[int(share * len(inside))])) for volume in (turned, found, expected)
        )
        for share in SHARES
    ]
    window = display_window(torch.as_tensor(ct), [plane[:2] for plane in planes], view.pixel)
    rows, columns = planes[0][0].shape
    height = 2.6 * rows * view.aspect / columns
    figure = Figure(figsize=(2.6 * len(planes), height + 2 * MARGIN), dpi=120)
    for n, (image, prediction, label) in enumerate(planes):
        place = (n / len(planes), 0, 0.995 / len(planes), height / (height + 2 * MARGIN))
        draw_plane(
            figure.add_axes(place), image, {REFERENCE: label, PREDICTION: prediction}, window[:2], view.aspect
        )
    text = (
        f"Liver by UNet++ (red), Dice {dice:.3f}; reference (white). CT: TotalSegmentator, Wasserthal et al."
    )
    figure.text(0.5, 1 - MARGIN / figure.get_figheight(), text, fontsize=9, ha="center", va="center")
    return figure


if __name__ == "__main__":
    main()
