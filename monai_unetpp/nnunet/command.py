# SPDX-License-Identifier: Apache-2.0
"""``monai-unetpp nnunet ...``: the arguments of its commands; what they run is imported when they run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

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


STEPS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Run]] = {
    "path": ("Print the folder for the environment variable nnUNet_extTrainer.", _no_arguments, _path),
    "plans": ("Add a configuration to a plans file that fits the same memory.", _plans_arguments, _plans),
}
