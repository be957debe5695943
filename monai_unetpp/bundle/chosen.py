# SPDX-License-Identifier: Apache-2.0
"""Which weights a bundle's ``inference.json`` runs with, and what follows from their record."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from monai_unetpp.bundle.places import config_files, find_bundle
from monai_unetpp.bundle.settings import apply_record, check_keys, set_values
from monai_unetpp.files import PathLike
from monai_unetpp.weights import Record, read_record

__all__ = ["Chosen", "configure"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """Configuration with its values, and the weights that it runs with.

    Args:
        parser: Parser of ``inference.json`` with all values set.
        weights: Path of the weights.
        record: Record of the weights, if they have one.
        overlays: Names of the JSONs that are merged over it.
        reason: Why it is these weights.
    """

    parser: ConfigParser
    weights: Path
    record: Record | None
    overlays: tuple[str, ...]
    reason: str


def configure(
    bundle: PathLike,
    paths: Mapping[str, PathLike],
    overlays: Sequence[str] = (),
    override_record: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Chosen:
    """Return the configuration of a bundle's inference, with weights and what their record says.

    Args:
        bundle: Folder of the bundle, or the name of one that comes with this package.
        paths: Places by key, such as ``"output_dir"``.
        overlays: Names of further JSONs of the bundle that are merged over ``inference.json``.
        override_record: Whether ``settings`` and ``overlays`` win where the record of the weights disagrees.
        settings: Other values for keys of the configuration.

    Raises:
        FileNotFoundError: if there is no such bundle, or it has the weights of folds only.
        ValueError: if a key is unknown, or a value disagrees with the record of the weights.
    """
    root, settings = find_bundle(bundle), dict(settings or {})
    values = {**paths, "bundle_root": root, **settings}
    parser = _parse(root, overlays, values)
    weights, reason, record = _named(parser), "", None
    if "ckpt_path" in settings:
        reason = "they were named"
    elif weights.is_file():
        ships = weights.parent == root / "weights"
        reason = "they come with the bundle, which was not trained" if ships else "the bundle was trained"
    else:
        weights, reason, overlays = _shipped(root, weights, overlays, values)
    record = read_record(weights)
    more = [] if record is None else [name for name in record.overlays if name not in overlays]
    more = [name for name in more if _has(root, name)]
    if more:
        logger.info(
            f"{weights} was trained with {', '.join(more)}.json, which is merged over inference.json."
        )
    parser = _parse(root, overlays, values, more)
    set_values(parser, {"ckpt_path": weights})
    if record is not None:
        explicit = {key for name in overlays for key in _keys(root, name)} | set(settings)
        apply_record(parser, record, explicit, weights, override_record)
    logger.info(f"Weights: {weights}, because {reason}.")
    if record is not None and record.synthetic:
        logger.warning(f"{weights} was trained on synthetic scans alone: its masks of patients mean nothing.")
    return Chosen(parser, weights, record, (*more, *overlays), reason)


def _parse(
    root: Path, overlays: Sequence[str], values: Mapping[str, Any], recorded: Sequence[str] = ()
) -> ConfigParser:
    """Return the configuration with values; ``recorded`` overlays without what only a training has."""
    parser = ConfigParser()
    parser.read_config(config_files(root, "inference"))
    for name in (*recorded, *overlays):
        [path] = config_files(root, name)
        for key, value in ConfigParser.load_config_file(path).items():
            with nullcontext() if name in overlays else suppress(KeyError, ValueError):
                merge_kv(parser, key, value)
    check_keys(parser.get(), values, " + ".join(f"{name}.json" for name in ("inference", *overlays)))
    # one dial: in a packed bundle the inferer may name an option of MONAI Label instead
    set_values(parser, {"inferer#level": "@level", **values})
    return parser


def _shipped(
    root: Path, missing: Path, overlays: Sequence[str], values: Mapping[str, Any]
) -> tuple[Path, str, Sequence[str]]:
    """Return the only weights that come with a bundle in place of ``missing`` ones, or those themselves.

    If the overlays of the weights that come with the bundle lead to weights of a training, these are used.
    """
    reason = "the configuration names them"
    found = [path for path in sorted((root / "weights").glob("*.pt")) if path != missing]
    record = read_record(found[0]) if len(found) == 1 else None
    if record is None:
        return missing, reason, overlays
    names = [name for name in record.overlays if name not in overlays and _has(root, name)]
    own = _named(_parse(root, overlays, values, names))
    if own.is_file() and own != found[0]:
        return (
            own,
            f"the bundle was trained with {', '.join(names)}.json, and {missing} does not exist",
            overlays,
        )
    return found[0], f"they come with the bundle, and no training wrote {missing}", overlays


def _named(parser: ConfigParser) -> Path:
    """Return the path of the weights that a configuration names."""
    try:
        return Path(parser.get_parsed_content("ckpt_path"))
    except RuntimeError as error:  # MONAI's, around that of an expression
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise


def _has(root: Path, name: str) -> bool:
    try:
        return bool(config_files(root, name))
    except FileNotFoundError:
        return False


def _keys(root: Path, name: str) -> list[str]:
    [path] = config_files(root, name)
    return [key.lstrip("+") for key in ConfigParser.load_config_file(path)]
