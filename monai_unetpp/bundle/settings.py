# SPDX-License-Identifier: Apache-2.0
"""Values that a bundle's configuration is given from outside."""

from __future__ import annotations

import ast
import copy
import difflib
import inspect
import json
import os
import pydoc
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from monai.bundle import ConfigParser

from monai_unetpp.files import PathLike
from monai_unetpp.network import UNetPlusPlus
from monai_unetpp.network.spec import Spec
from monai_unetpp.weights import Record, plain

__all__ = ["PATHS", "apply_record", "check_keys", "parse_value", "set_values"]

PATHS = (
    *("bundle_root", "input", "dataset_dir", "output_dir", "ckpt_dir", "ckpt_path", "splits_path"),
    "finetune",
)
SIGNS = frozenset("#$@%")  # which MONAI's parser reads
DATA = "_data"  # name by which expressions find values that are not parsed
OF_TRAINING = ("use_checkpoint", "pretrained")  # arguments of a network that weights do not depend on
MONAIS_OWN = ("_target_", "_disabled_", "_requires_", "_desc_", "_mode_", "_meta_")


def parse_value(text: str) -> Any:
    """Return a value as one types it: JSON, a Python literal such as ``False``, or else text."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError):
            continue
        return list(value) if isinstance(value, tuple) else value
    return text


def set_values(parser: ConfigParser, values: Mapping[str, Any]) -> None:
    """Set keys of a configuration before it is parsed.

    A path is data: MONAI's parser would read ``#`` in it as ``::``, and ``$``, ``@`` and ``%`` as code and
    references. A value of one of the :data:`PATHS`, and any path object, is therefore handed over as an
    object if it has one of these signs. The parser does not look into it; expressions see a string.

    Args:
        parser: Parser of the configuration.
        values: Values by key; ``"windows#overlap"`` is a key inside of another.
    """
    known = parser.globals.setdefault(DATA, {})
    for key, value in values.items():
        is_path = isinstance(value, os.PathLike) or (key in PATHS and isinstance(value, str))
        value = os.fspath(value) if is_path else value
        if is_path and not SIGNS.isdisjoint(value):
            known[key] = value
            parser[key] = f"${DATA}[{key!r}]"
        else:
            parser[key] = value


def apply_record(
    parser: ConfigParser,
    record: Record,
    explicit: Collection[str],
    weights: PathLike,
    override: bool = False,
) -> None:
    """Set what the record of weights says: network, spacing, window and intensities.

    Args:
        parser: Parser of the configuration.
        record: Record of the weights.
        explicit: Keys whose values were given by a user, not by default.
        weights: Path of the weights, for the message.
        override: Whether values that were given win where they disagree.

    Raises:
        ValueError: if a value that was given disagrees and ``override`` is false; it names both.
    """
    config = parser.get()
    values = record.settings
    target = str(config.get("network_def", {}).get("_target_", ""))
    if target.rpartition(".")[2] == "UNetPlusPlus" and "network_def" not in explicit:
        values |= _network_values(config, record.network)
    given = {key.replace("::", "#") for key in explicit}
    for key, value in values.items():
        if key not in given:
            continue
        here = plain(ConfigParser(copy.deepcopy(config), globals=parser.globals).get_parsed_content(key))
        if here != value and not override and not _same_network(key, here, value, record):
            raise ValueError(
                f"{key} must be {value}, with which {weights} was trained, got {here}: leave it out, or pass "
                "override_record=True (--override-record; with monai.bundle --override_record True)."
            )
    set_values(parser, {key: value for key, value in values.items() if key not in given})


def _network_values(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network by the keys of the configuration that hold them.

    Arguments that the configuration leads to already are left as it spells them, so that ``strides`` 2 stays
    right for other ``channels``.
    """
    definition, values = dict(config["network_def"]), {}
    rest = {}
    for name, value in arguments.items():
        held = definition.get(name)
        if isinstance(held, str) and held.startswith("@") and held[1:] in config:
            values[held[1:]] = definition[name] = value
        elif name not in OF_TRAINING:
            rest[name] = value
    already = _spelled_out(definition)
    differ = [name for name in rest if name not in already or already[name] != rest[name]]
    return values | {f"network_def#{name}": rest[name] for name in differ}


def _spelled_out(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a network as plain JSON; none if some of them do not fit."""
    defaults = {name: each.default for name, each in inspect.signature(UNetPlusPlus).parameters.items()}
    given = {name: value for name, value in definition.items() if name not in MONAIS_OWN}
    try:
        return dict(plain(Spec(**{**defaults, **given}).arguments()))
    except (AttributeError, TypeError, ValueError):
        return {}


def _same_network(key: str, here: Any, recorded: Any, record: Record) -> bool:
    """Whether two spellings of an argument make the same network, such as ``strides`` 2 and [[2, 2], ...]."""
    name = key.removeprefix("network_def#")
    return name in record.network and _spelled_out({**record.network, name: here}).get(name) == recorded


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
