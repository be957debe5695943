# SPDX-License-Identifier: Apache-2.0
"""Findings of a whole scan by confidence: the rank of its lesions, and false positives, all and by size.

The scan is segmented once into ``--work``, mask and probability; another calibration of the same weights is
tried in seconds. ``--froc`` adds the FROC by size of the held-out cases, which findings.json wrote.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_unetpp.confidence import CaseFindings, match_lesions, read_confidence
from monai_unetpp.files import read_csv, write_csv
from monai_unetpp.findings import Confidence, find
from monai_unetpp.readers import volume_loader
from monai_unetpp.segment import segment

SIZES_MM = (0, 3, 6)  # smallest diameters of false positives that are counted


def findings_of(work: Path, image: Path, label: Path, model: dict[str, Confidence]) -> CaseFindings:
    """Return the findings of a scan that was segmented into ``work``, the most confident first."""
    name = image.name.removesuffix(".gz").removesuffix(".nii")
    load = volume_loader(modality=None)
    paths = (work / f"{name}_seg.nii.gz", work / f"{name}_probability.nii.gz", label, image)
    volumes = [load(str(path)) for path in paths]
    mask, probability, reference, scan = (volume.numpy()[0] for volume in volumes)
    affine = volumes[0].affine.numpy().astype(float)
    labels = (mask > 0).astype(np.uint8)
    [lesion] = model or ["lesion"]
    found = find(labels, affine, {lesion: [1]}, scan, probability[None], confidence=model)
    return match_lesions(str(image), lesion, found, labels > 0, reference > 0, affine)


def row(case: CaseFindings, by: str, least: float) -> dict[str, Any]:
    """Return rank of the first lesion and false positives, in the order of ``by`` from ``least`` on."""
    found = sorted(zip(case.findings, case.touched, strict=True), key=lambda pair: -getattr(pair[0], by))
    kept = [(each, touched) for each, touched in found if getattr(each, by) >= least]
    ranks = [n for n, (_, touched) in enumerate(kept, 1) if touched]
    false = [each.equivalent_diameter_mm for each, touched in kept if not touched]
    return {
        "of": "scan",
        "by": by,
        "least": least,
        "lesions": len(case.lesions),
        "lesions_kept": len({number for _, touched in kept for number in touched}),
        "rank_of_first": ranks[0] if ranks else "",
        "sum_of_values": round(sum(getattr(each, by) for each, _ in kept), 2),
        **{f"false_{size}_mm": sum(diameter >= size for diameter in false) for size in SIZES_MM},
    }


def froc_rows(path: Path) -> Sequence[dict[str, Any]]:
    """Return the rows of a ``froc.csv``."""
    return [{"of": "held-out cases", **each} for each in read_csv(path, "by", "size", "sensitivity")]


def main() -> None:
    """Parse arguments, segment, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--label", type=Path, required=True, help="mask of the lesions of the image")
    parser.add_argument("--work", type=Path, required=True, help="folder of the mask and the probability")
    parser.add_argument("--froc", type=Path, help="froc.csv of findings.json")
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    args = parser.parse_args()
    settings = {"probability": 1, "level": "auto", "ckpt_path": args.checkpoint}
    [outcome] = segment(args.image, args.work, args.bundle, **settings)
    if outcome.state == "failed":
        parser.exit(2, f"{outcome.reason}\n")
    calibrated = read_confidence(args.checkpoint)
    model = {} if calibrated is None else calibrated[1]
    case = findings_of(args.work, args.image, args.label, model)
    rows = [row(case, "mean_probability", 0.0)]
    for confidence in model.values():
        rows += [row(case, "confidence", least) for least in (0.0, confidence.operating_point)]
    rows += froc_rows(args.froc) if args.froc else []
    columns = list(dict.fromkeys(name for each in rows for name in each))
    write_csv(args.out, [{name: each.get(name, "") for name in columns} for each in rows], columns=columns)
    for each in rows:
        print(", ".join(f"{key} {value}" for key, value in each.items()))  # noqa: T201


if __name__ == "__main__":
    main()
