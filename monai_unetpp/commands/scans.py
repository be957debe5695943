# SPDX-License-Identifier: Apache-2.0
"""The command that segments scans."""

from __future__ import annotations

import argparse
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai_unetpp.commands.shared import Run, share

__all__ = ["segment"]

FLAGS = (  # passed on as they are
    *("probability", "uncertainty", "sheets", "findings", "min_volume", "min_diameter", "min_confidence"),
    *("report", "overwrite", "mirror"),
)


def segment(parser: argparse.ArgumentParser) -> Run:
    """Segment scans, each into a mask on its own grid, NIfTI or DICOM, by a bundle's inference.json."""
    scans = "NIfTI, NRRD or MetaImage file, folder with a DICOM series, or folder of such"
    parser.add_argument("-i", "--input", type=Path, required=True, help=scans)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the masks")
    folder = "folder of the bundle, such as bundles/lung_nodule, or hippocampus, liver or lung_nodule alone"
    parser.add_argument("--bundle", type=Path, required=True, help=folder)
    files = "file of weights; default that of the bundle; of several the probabilities are averaged"
    parser.add_argument("--checkpoint", type=Path, nargs="+", help=files)
    axes = "average over mirrored windows as well, along the axes that training mirrored"
    parser.add_argument("--mirror", action="store_true", help=axes)
    levels = "level k of L^k; auto: the calibrated one, or the deepest; early-exit: as deep as a window needs"
    parser.add_argument("--level", default="auto", help=f"{levels} (%(default)s)")
    numbers = "float32, bfloat16, float16; auto: the calibrated one, or the usual one of the device"
    parser.add_argument("--precision", default="auto", help=f"{numbers} (%(default)s)")
    share(parser, "--device")
    parser.add_argument("--probability", type=int, metavar="CLASS", help="write its probability as well")
    maps = "write the disagreement of the heads as well, and rank the scans by expected error"
    parser.add_argument("--uncertainty", action="store_true", help=maps)
    parser.add_argument("--sheets", action="store_true", help="draw slices with outlines as well")
    table = "measure each connected component as well, in <name>_findings.csv and for all in findings.csv"
    parser.add_argument("--findings", action="store_true", help=table)
    smaller = "drop smaller components from mask and tables, such as"
    parser.add_argument("--min-volume", metavar="VOLUME", help=f"{smaller} 30mm3 or 0.03ml")
    parser.add_argument("--min-diameter", metavar="LENGTH", help=f"{smaller} 4mm, by their long axis")
    less = (
        "drop less confident components likewise, such as 0.7; default with --findings: the calibrated point"
    )
    parser.add_argument("--min-confidence", metavar="PROBABILITY", help=less)
    page = "write report.html and report.json: what became of each scan, why, settings, findings, sheets"
    parser.add_argument("--report", action="store_true", help=page)
    formats = "nifti, and of a DICOM series dicom-seg, dicom-rtstruct; several may be given"
    parser.add_argument("--format", nargs="+", default=["nifti"], help=f"{formats} (nifti)")
    kinds = "of dicom-seg: binary, one bit per pixel and segment, or labelmap"
    parser.add_argument("--seg-type", default="binary", help=f"{kinds} (%(default)s)")
    frames = "keep frames in which nothing was found in dicom-seg"
    parser.add_argument("--empty-frames", action="store_true", help=frames)
    which = "UID of a DICOM series, or part of its description (* and ?); several may be given"
    parser.add_argument("--series", nargs="+", default=[], help=f"{which}; default all that are volumes")
    share(parser, "--overwrite", help="segment scans again whose results exist")
    share(parser, "--overlay")
    share(parser, "--set", help="another value for a key of inference.json")
    wins = "use --set and --overlay where the record of the weights disagrees, instead of stopping"
    parser.add_argument("--override-record", action="store_true", help=wins)
    return _segment


def _segment(args: argparse.Namespace) -> object:
    from monai_unetpp.devices import find_device
    from monai_unetpp.segment import segment_distributed

    settings = _settings(args.set)
    for option, key in (("checkpoint", "ckpt_path"), ("device", "device")):
        if getattr(args, option) is not None and key in settings:
            raise ValueError(f"--{option} and --set {key} are the same setting: give one of them.")
    if args.checkpoint is not None:
        settings["ckpt_path"], *settings["ensemble"] = args.checkpoint
    if args.device is not None:
        settings["device"] = f"$torch.device({str(find_device(args.device))!r})"
    settings |= {key: getattr(args, key) for key in (*FLAGS, "override_record", "precision", "series")}
    settings |= {"formats": args.format, "seg_type": args.seg_type, "empty_frames": args.empty_frames}
    level = int(args.level) if args.level.isdecimal() else args.level
    with _shown("monai_unetpp.bundle.chosen"), _shown("monai_unetpp.segment.findings"):
        return segment_distributed(
            args.input, args.output, args.bundle, level, args.overlay, progress=True, **settings
        )


def _settings(pairs: list[list[str]]) -> dict[str, Any]:
    """Return the keys of inference.json with their values; what options set is none of them."""
    from monai_unetpp.bundle import parse_value
    from monai_unetpp.segment import load_pipeline, segment, segment_distributed

    functions = (segment_distributed, segment, load_pipeline)
    arguments = {name for each in functions for name in inspect.signature(each).parameters} - {"settings"}
    if wrong := [key for key, _ in pairs if key in arguments]:
        raise ValueError(
            f"--set must have keys of inference.json that no option sets, got {wrong[0]}: see the options in "
            "monai-unetpp segment --help."
        )
    return {key: parse_value(value) for key, value in pairs}


@contextmanager
def _shown(name: str) -> Iterator[None]:
    """Show the messages of a logger on stderr, such as which weights are used and why."""
    logger, handler = logging.getLogger(name), logging.StreamHandler()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
