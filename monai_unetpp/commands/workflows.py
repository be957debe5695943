# SPDX-License-Identifier: Apache-2.0
"""Commands that run the workflows of a bundle, one for each of its JSONs."""

from __future__ import annotations

import argparse
from pathlib import Path

from monai_unetpp.commands.shared import Run, share

__all__ = ["evaluate", "findings", "levels", "train"]


def train(parser: argparse.ArgumentParser) -> Run:
    """Train a bundle, by its train.json; --KEY VALUE sets any of its keys."""
    return _workflow(parser, "train")


def evaluate(parser: argparse.ArgumentParser) -> Run:
    """Score the held-out cases of a trained bundle, by its evaluate.json; --KEY VALUE sets any key."""
    return _workflow(parser, "evaluate")


def levels(parser: argparse.ArgumentParser) -> Run:
    """Score every level of a trained bundle, by its levels.json; --KEY VALUE sets any key."""
    return _workflow(parser, "levels")


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
