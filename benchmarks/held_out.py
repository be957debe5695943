# SPDX-License-Identifier: Apache-2.0
"""Weights of a bundle and the cases that they were not trained on: options that several benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_unetpp.bundle import parse_value

__all__ = ["held_out"]


def held_out(description: str | None) -> tuple[argparse.Namespace, Callable[..., Any]]:
    """Return the options of the command line, and a function that builds parts of the configuration.

    ``"validate#dataloader"`` has the held-out cases, each on its own grid.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--configs", nargs="+", required=True, help="train.json and its overlays")
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    names = "names of the held-out cases; default those of today's split"
    parser.add_argument("--held_out", nargs="+", help=names)
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    args = parser.parse_args()
    config = ConfigParser()
    config.read_config(args.configs)
    config.update({"dataset_dir": args.dataset_dir, "resampled": ["image"], "cache_rate": 0.0})
    for key, value in args.set:
        config[key] = parse_value(value)
    get = config.get_parsed_content
    get("imports")
    if args.held_out:
        cases = {Path(case["image"]).name.split(".")[0]: case for case in get("dataset").cases}
        config["validate#dataset#data"] = [cases[name] for name in args.held_out]
    return args, get
