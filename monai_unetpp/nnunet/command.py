# SPDX-License-Identifier: Apache-2.0
"""``monai-unetpp nnunet ...``: the arguments of its commands; what they run is imported when they run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["declare", "trainer_folder"]

Run = Callable[[argparse.Namespace], object]
FOLDER = Path(__file__).parent / "trainer"


def trainer_folder() -> Path:
    """Return the folder for the environment variable ``nnUNet_extTrainer``."""
    return FOLDER


def declare(parser: argparse.ArgumentParser) -> Run:
    """Add the commands, and return what runs the one that was chosen."""
    commands = parser.add_subparsers(metavar="STEP", required=True)
    for name, (help_, add, run) in STEPS.items():
        child = commands.add_parser(name, help=help_, description=help_, allow_abbrev=False)
        add(child)
        child.set_defaults(step=run)
    return lambda args: args.step(args)


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing."""


def _path(_: argparse.Namespace) -> str:
    from monai_unetpp.extras import require

    require("nnunet", "nnunetv2")
    return str(FOLDER)


def _plans_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plans", type=Path, metavar="PLANS.json", help="in nnUNet_preprocessed/DATASET")
    parser.add_argument("-c", "--configuration", help="to inherit from; default 3d_fullres, or 2d without it")
    parser.add_argument("--name", help="of the new configuration; default CONFIGURATION_unetpp")
    memory = "memory of a training step, such as 8GB; default what their U-Net takes"
    parser.add_argument("--memory", help=memory)
    stages = "stages to keep; default at most 5, which is L4, if memory is short"
    parser.add_argument("--stages", type=int, help=stages)
    parser.add_argument("--overwrite", action="store_true", help="replace a configuration of this name")


def _plans(args: argparse.Namespace) -> str:
    from monai_unetpp.nnunet.plans import add_configuration
    from monai_unetpp.planning import parse_memory

    memory = None if args.memory is None else parse_memory(args.memory)
    options = {"memory": memory, "stages": args.stages, "overwrite": args.overwrite}
    added = add_configuration(args.plans, args.configuration, args.name, **options)
    following = f"nnUNetv2_train {args.plans.absolute().parent.name} {added.name} 0"
    return "\n".join([*added.lines, "", f"next: {following} -tr nnUNetTrainerUNetPlusPlus"])


def _fold_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the names by which nnU-Net's commands find a trained fold."""
    parser.add_argument("dataset", metavar="DATASET", help="name or number of the data set")
    parser.add_argument("configuration", metavar="CONFIG", help="configuration, such as 3d_fullres")
    parser.add_argument("fold", metavar="FOLD", help="number of the fold, or all")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans (%(default)s)")
    ours = "nnUNetTrainerUNetPlusPlus"
    parser.add_argument("-tr", dest="trainer", default=ours, help="trainer (%(default)s)")
    final = "checkpoint_final.pth"
    parser.add_argument("-chk", dest="checkpoint", default=final, help="(%(default)s)")
    parser.add_argument("--disable_tta", action="store_true", help="no mirrored windows")
    parser.add_argument("--tolerance", type=float, default=0.01, help="loss of Dice to accept (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def _fold(args: argparse.Namespace) -> Any:
    from monai_unetpp.nnunet.models import find_fold

    names = (args.dataset, args.configuration, args.fold, args.plans, args.trainer, args.checkpoint)
    return find_fold(*names)


def _levels_arguments(parser: argparse.ArgumentParser) -> None:
    _fold_arguments(parser)
    parser.add_argument("--device", help="such as cpu or cuda:1; default a GPU if there is one")
    agree = "distance up to which surfaces agree, mm (%(default)s)"
    parser.add_argument("--surface-tolerance", type=float, default=2.0, help=agree)
    parser.add_argument("--out", type=Path, help="folder to write; default levels in that of the fold")


def _levels(args: argparse.Namespace) -> str:
    fold = _fold(args)
    from monai_unetpp.devices import find_device
    from monai_unetpp.nnunet.levels import choose_level

    level, folder = choose_level(
        fold,
        find_device(args.device),
        args.tolerance,
        not args.disable_tta,
        args.surface_tolerance,
        args.out,
        args.overwrite,
        lambda line: sys.stderr.write(f"{line}\n"),
    )
    table = (folder / "levels.md").read_text(encoding="utf-8")
    names = f"-d {args.dataset} -c {args.configuration} -f {args.fold} -tr {args.trainer} -p {args.plans}"
    return f"{table}\nwritten to {folder}; next: nnUNet_unetpp_level={level} nnUNetv2_predict {names} -i -o"


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _fold_arguments(parser)
    parser.add_argument("--level", type=int, help="level k of L^k; default by the scores of levels")
    parser.add_argument("--scores", type=Path, help="folder of these scores, if levels had an --out")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; its name is the bundle's")


def _export(args: argparse.Namespace) -> str:
    fold = _fold(args)
    from monai_unetpp.nnunet.export import chosen_level, export_level

    level = chosen_level(fold, args.tolerance, args.scores) if args.level is None else args.level
    out = export_level(fold, level, args.out, not args.disable_tta, args.overwrite)
    return f"L{level} in {out.resolve()}; next: monai-unetpp segment -i SCANS -o MASKS --bundle {args.out}"


STEPS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Run]] = {
    "path": ("Print the folder for the environment variable nnUNet_extTrainer.", _no_arguments, _path),
    "plans": ("Add a configuration to a plans file that fits the same memory.", _plans_arguments, _plans),
    "levels": ("Score every level of a trained fold by nnU-Net's predictor.", _levels_arguments, _levels),
    "export": ("Write one level of a trained fold as a bundle of MONAI.", _export_arguments, _export),
}
