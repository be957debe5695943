# SPDX-License-Identifier: Apache-2.0
"""Commands from a data set to a bundle: plan it, or plan and train it."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

from monai_unetpp.commands.shared import Run, share

__all__ = ["fit", "plan"]


def plan(parser: argparse.ArgumentParser) -> Run:
    """Write a bundle for data of one's own: look at the data, choose every setting, and say why."""
    _planned(parser, "time of the training; default 1 on a CPU, 8 on a GPU")
    return _plan


def fit(parser: argparse.ArgumentParser) -> Run:
    """Plan a bundle, train it, choose depth and precision, and report; the same command resumes."""
    _planned(parser, "time of all of it; default 1 for each training on a CPU, 8 on a GPU")
    parser.add_argument("--folds", type=int, help="folds of a cross-validation; default one training")
    several = "devices that share the folds, a process each, such as cuda:0 cuda:1"
    parser.add_argument("--devices", nargs="+", default=[], help=several)
    narrow = "train all levels for 40 %% of the time, in OUT_all_levels, then the chosen one alone, in OUT"
    parser.add_argument("--narrow", action="store_true", help=narrow)
    return _fit


def _planned(parser: argparse.ArgumentParser, hours: str) -> None:
    """Add the arguments of what plans a bundle."""
    layouts = "Decathlon, nnU-Net v2, or two folders of equal names, of volumes or of pictures"
    parser.add_argument("data", type=Path, metavar="DATA", help=f"folder of the data set: {layouts}")
    share(parser, "--out", help="folder to make; its name is the bundle's")
    parser.add_argument("--images", help="folder of the images in DATA, without dataset.json")
    parser.add_argument("--masks", help="folder of the masks in DATA, likewise")
    names = "regular expression with a group scan: cases of one scan, or patient, stay together"
    parser.add_argument("--scan", help=names)
    one = "all that is not 0 in a mask is one class, as in maps of instances"
    parser.add_argument("--foreground", action="store_true", help=one)
    parser.add_argument("--classes", nargs="+", help="names of the classes, without the background")
    unknown = "value of voxels in the masks that nobody annotated; default nnU-Net's label ignore"
    parser.add_argument("--ignore-label", type=int, metavar="VALUE", help=unknown)
    parser.add_argument("--allow-empty", action="store_true", help="masks may be empty")
    outside = "dataset.json may name files outside of its folder, also through links"
    parser.add_argument("--allow-outside", action="store_true", help=outside)
    parser.add_argument("--skip-bad", action="store_true", help="go on without the cases that do not fit")
    parser.add_argument("--memory", help="memory of a training step, such as 8GB; default what there is")
    parser.add_argument("--hours", type=float, help=hours)
    share(parser, "--device")
    share(parser, "--set", help="a setting that is not chosen but taken, such as roi_size [64,64,64]")


def _plan(args: argparse.Namespace) -> str:
    from monai_unetpp.planning import plan_bundle

    source, options = _asked(args)
    found, made = plan_bundle(source, args.out, progress=True, **options)
    table = found.table()
    width = max(len(name) for name, _ in table)
    lines = [f"{name:{width}}  {value}" for name, value in table]
    left = [f"left out: {path} {why}" for path, why in found.problems.items()]
    following = f"written to {args.out.resolve()}; next: monai-unetpp train {shlex.quote(str(args.out))}"
    return "\n".join([*lines, *left, "", *made.lines(), "", following])


def _fit(args: argparse.Namespace) -> str:
    from monai_unetpp.fitting import fit_bundle

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    source, options = _asked(args)
    return "\n".join(
        fit_bundle(
            source, args.out, args.folds, devices=args.devices, narrow=args.narrow, say=say, **options
        ).lines()
    )


def _asked(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Return the data set and what a plan has to keep to."""
    from monai_unetpp.bundle import parse_value
    from monai_unetpp.planning import Source, parse_memory

    source = Source(**{each.name: getattr(args, each.name) for each in dataclasses.fields(Source)})
    options = {key: getattr(args, key) for key in ("skip_bad", "hours", "device")}
    memory = None if args.memory is None else parse_memory(args.memory)
    given = {key: parse_value(value) for key, value in args.set}
    return source, {**options, "memory": memory, "given": given}
