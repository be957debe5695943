# SPDX-License-Identifier: Apache-2.0
"""Values that a bundle's configuration is given from outside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from monai.bundle import ConfigParser

__all__ = ["PATHS", "set_values"]

PATHS = ("bundle_root", "input", "dataset_dir", "output_dir", "ckpt_dir", "ckpt_path")
DATA = "_data"  # name by which expressions find values that are not parsed


def set_values(parser: ConfigParser, values: Mapping[str, Any]) -> None:
    """Set keys of a configuration before it is parsed.

    A path is data: MONAI's parser would read ``#`` in it as ``::``, and ``$``, ``@`` and ``%`` as code and
    references. A value of one of the :data:`PATHS`, and any value that is a path object, is therefore handed
    over as an object, which the parser does not look into; expressions see a string.

    Args:
        parser: Parser of the configuration.
        values: Values by key; ``"windows#overlap"`` is a key inside of another.
    """
    known = parser.globals.setdefault(DATA, {})
    for key, value in values.items():
        if isinstance(value, os.PathLike) or (key in PATHS and isinstance(value, str)):
            known[key] = os.fspath(value)
            parser[key] = f"${DATA}[{key!r}]"
        else:
            parser[key] = value
