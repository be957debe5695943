# SPDX-License-Identifier: Apache-2.0
"""Commands for hosts that train the network: nnU-Net, Auto3DSeg."""

from __future__ import annotations

import argparse

from monai_unetpp.commands.shared import Run

__all__ = ["auto3dseg", "nnunet"]


def nnunet(parser: argparse.ArgumentParser) -> Run:
    """Train UNet++ inside nnU-Net v2: its trainer's folder, plans, levels, and a level as a bundle."""
    from monai_unetpp.nnunet.command import declare  # which imports nothing before it runs

    return declare(parser)


def auto3dseg(parser: argparse.ArgumentParser) -> Run:
    """Print the folder of templates with which MONAI's Auto3DSeg trains UNet++."""
    parser.add_argument("step", choices=["path"], help="the folder for templates_path_or_url")

    def run(_: argparse.Namespace) -> str:
        from monai_unetpp.auto3dseg import templates_folder

        return str(templates_folder())

    return run
