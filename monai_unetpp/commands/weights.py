# SPDX-License-Identifier: Apache-2.0
"""Commands on bundles and weights: copy, prune, pack."""

from __future__ import annotations

import argparse
from pathlib import Path

from monai_unetpp.commands.shared import Run, share

__all__ = ["bundle", "pack", "prune"]


def prune(parser: argparse.ArgumentParser) -> Run:
    """Take one level out of a checkpoint: weights that need a fraction of the memory and the time."""
    share(parser, "--checkpoint", required=True)
    parser.add_argument("--level", type=int, required=True, help="level k of L^k, 1 is the shallowest")
    where = "not in the models folder of a bundle, where MONAI Label would load it into the whole network"
    share(parser, "--out", help=f"file to write; {where}")
    parser.add_argument("--skips", default="dense", help="skips of the network: dense, short, long")
    share(parser, "--overwrite")

    def run(args: argparse.Namespace) -> str:
        from monai_unetpp.weights import prune_weights

        kept, of = prune_weights(args.checkpoint, args.level, args.out, args.skips, args.overwrite)
        return f"L{args.level}: {kept:,} of {of:,} weights, in {args.out.resolve()}"

    return run


def bundle(parser: argparse.ArgumentParser) -> Run:
    """Write a bundle that comes with this package into a folder, to run and to change."""
    parser.add_argument("name", help="name of the bundle: hippocampus, liver or lung_nodule")
    share(parser, "--out", required=False, default=Path("bundles"), help="folder of bundles (%(default)s)")
    share(parser, "--overwrite", help="replace the files of the bundle; what it made stays")

    def run(args: argparse.Namespace) -> str:
        from monai_unetpp.bundle import copy_bundle

        return f"written to {copy_bundle(args.name, args.out, args.overwrite).resolve()}"

    return run


def pack(parser: argparse.ArgumentParser) -> Run:
    """Build the layout of MONAI's model zoo from a bundle, or a model for 3D Slicer."""
    parser.add_argument("bundle", type=Path, help="folder of the bundle, such as bundles/liver")
    share(parser, "--checkpoint", required=True)
    share(parser, "--out", help="folder to make; its name is the bundle's")
    parser.add_argument("--level", type=int, help="level k to keep, L^k alone; default all levels")
    share(parser, "--overlay")
    alone = "put the code of this package in: it need not be installed; the zoo installs from PyPI alone"
    parser.add_argument("--standalone", action=argparse.BooleanOptionalAction, default=True, help=alone)
    card = "text on data, split, scores and limits; default the README.md beside the weights"
    parser.add_argument("--card", type=Path, help=card)
    share(parser, "--overwrite", help="replace an existing packed bundle")
    wins = "use overlays and metadata.json where the record of the weights disagrees, instead of stopping"
    parser.add_argument("--override-record", action="store_true", help=wins)
    model = (
        "write model.pt and labels.csv for 3D Slicer's MONAIAuto3DSeg; default --level: the calibrated one"
    )
    parser.add_argument("--slicer", action="store_true", help=model)

    def run(args: argparse.Namespace) -> str:
        if args.slicer:
            return _pack_for_slicer(args)
        from monai_unetpp.bundle import pack_bundle

        names = ("level", "standalone", "card", "overwrite", "override_record")
        options = {key: getattr(args, key) for key in names}
        out = pack_bundle(args.bundle, args.checkpoint, args.out, overlays=args.overlay, **options)
        if args.standalone:
            return f"packed in {out.resolve()}, with the code of this package"
        needs = "it runs where monai-unetpp is installed, which the zoo cannot do before it is on PyPI"
        return f"packed in {out.resolve()}, without the code of this package: {needs}"

    return run


def _pack_for_slicer(args: argparse.Namespace) -> str:
    from monai_unetpp.slicer import pack_for_slicer

    if args.card is not None or not args.standalone:
        raise ValueError("--card and --no-standalone must be left out with --slicer: they are of the zoo.")
    options = {key: getattr(args, key) for key in ("level", "overwrite", "override_record")}
    made = pack_for_slicer(args.bundle, args.checkpoint, args.out, overlays=args.overlay, **options)
    lines = [f"L{made.level} for 3D Slicer in {made.folder.resolve()}; Slicer's Python requires monai-unetpp"]
    return "\n".join([*lines, *(f"unlike with segment, {text}" for text in made.left_out)])
