# SPDX-License-Identifier: Apache-2.0
"""Values that a bundle's configuration is given from outside."""

from __future__ import annotations

import difflib
import inspect
import os
import pydoc
from collections.abc import Iterable, Mapping
from typing import Any

from monai.bundle import ConfigParser

__all__ = ["PATHS", "check_keys", "set_values"]

PATHS = ("bundle_root", "input", "dataset_dir", "output_dir", "ckpt_dir", "ckpt_path")
DATA = "_data"  # name by which expressions find values that are not parsed
MONAIS_OWN = ("_target_", "_disabled_", "_requires_", "_desc_", "_mode_", "_meta_")


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


def check_keys(config: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Raise a ValueError that names the first of ``keys`` that a configuration does not have.

    A key inside of another may also be an argument that the component there takes.

    Args:
        config: Configuration as its JSONs say, without the values that are to be set.
        keys: Keys to set; ``"windows#overlap"`` is a key inside of another.
        where: Name of the configuration, for the message.
    """
    for key in keys:
        *above, last = key.replace("::", "#").split("#")
        part: Any = config
        for n, name in enumerate([*above, last]):
            known = _known(part)
            if known is not None and name not in known:
                place = f"{where}, {'#'.join(above[:n])}," if n else where
                raise ValueError(f"{place} has no key {name!r}{_nearest(name, known)}")
            part = _inside(part, name)


def _known(part: Any) -> list[str] | None:
    """Return the keys that a part of a configuration may have; None where that cannot be told."""
    if isinstance(part, list):
        return [str(n) for n in range(len(part))]
    if not isinstance(part, Mapping):
        return None
    known = [key for key in part if key not in MONAIS_OWN]
    if "_target_" in part:
        arguments = _arguments(part["_target_"])
        return None if arguments is None else list(dict.fromkeys([*known, *arguments, *MONAIS_OWN]))
    return known


def _arguments(target: Any) -> list[str] | None:
    """Return the arguments of what ``_target_`` names; None if it takes any, or is not found."""
    name = str(target)
    if "." not in name:
        found = ConfigParser().locator.get_component_module_name(name)
        name = f"{found}.{name}" if isinstance(found, str) else name
    try:
        parameters = inspect.signature(pydoc.locate(name)).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError, pydoc.ErrorDuringImport):
        return None
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return None
    return list(parameters)


def _inside(part: Any, name: str) -> Any:
    if isinstance(part, list):
        return part[int(name)]
    return part.get(name) if isinstance(part, Mapping) else None


def _nearest(name: str, known: Iterable[str]) -> str:
    known = [key for key in known if key not in MONAIS_OWN]
    near = difflib.get_close_matches(name, known, 3, 0.6)
    return f": did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(sorted(known))}."
