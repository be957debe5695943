# SPDX-License-Identifier: Apache-2.0
"""What commands share: options that several of them have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["SHARED", "Declare", "Run", "share"]

Run = Callable[[argparse.Namespace], object]
Declare = Callable[[argparse.ArgumentParser], Run]


SHARED: dict[str, dict[str, Any]] = {  # options of several commands
    "--checkpoint": {"type": Path, "help": "file of weights, or a training checkpoint"},
    "--out": {"type": Path, "required": True, "help": "folder to write, made if it does not exist"},
    "--overlay": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "JSON of the bundle that is merged over its train.json and inference.json, such as slices",
    },
    "--device": {"help": "such as cpu or cuda:1; default a GPU if there is one"},
    "--set": {"nargs": 2, "action": "append", "default": [], "metavar": ("KEY", "VALUE")},
    "--overwrite": {"action": "store_true", "help": "replace existing files"},
}


def share(parser: argparse.ArgumentParser, flag: str, **changes: Any) -> None:
    """Add one of the :data:`SHARED` options, with ``changes`` for this command."""
    parser.add_argument(flag, **{**SHARED[flag], **changes})
