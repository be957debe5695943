# SPDX-License-Identifier: Apache-2.0
"""Workflows of a bundle, such as its training: the same configurations that ``monai.bundle run`` runs.

Errors are the user's mistake in one line.
"""

from __future__ import annotations

import inspect
import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.apps import get_logger
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from monai_unetpp.bundle.settings import parse_value, set_values
from monai_unetpp.errors import find_cause
from monai_unetpp.files import PathLike
from monai_unetpp.network import UNetPlusPlus
from monai_unetpp.weights.record import SETTINGS

__all__ = ["next_arguments", "run_words", "run_workflow", "settings_of"]

# not passed on to the next commands, which read the record of the weights, and do not train
OF_TRAINING = {
    *("finetune", "resume", "resume_changes"),
    *("max_epochs", "val_interval", "learning_rate", "weight_decay"),
}
RECORDED = {*SETTINGS, *inspect.signature(UNetPlusPlus).parameters}


class FilesWorkflow(ConfigWorkflow):
    """MONAI's workflow of JSONs, with paths that are data.

    Args:
        files: JSONs in the order of merging.
        settings: Key of the configuration -> value.
        tracking: That of ``monai.bundle run``: a name such as ``"mlflow"``, or the path of a JSON.

    Attributes:
        files: Paths of the JSONs, which :func:`~monai_unetpp.bundle.check_run` compares with.
    """

    def __init__(
        self, files: Sequence[Path], settings: Mapping[str, Any], tracking: str | None = None
    ) -> None:
        log = files[0].parent / "logging.conf"
        super().__init__(
            [str(file) for file in files],
            logging_file=str(log) if log.is_file() else False,
            workflow_type="train",
        )
        self.files = tuple(files)
        set_values(self.parser, settings)
        if tracking is not None:
            known: Any = DEFAULT_EXP_MGMT_SETTINGS
            config = known[tracking] if tracking in known else ConfigParser.load_config_files(tracking)
            self.patch_bundle_tracking(parser=self.parser, settings=config)


def run_workflow(
    name: str, bundle: PathLike, overlays: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> None:
    """Run a workflow of a bundle to its end.

    Args:
        name: Name of the workflow: ``"train"``, or ``"evaluate"``, ``"levels"`` or ``"findings"``, which are
            merged over it.
        bundle: Folder of the bundle.
        overlays: Names of further JSON files of the bundle, merged over train.json.
        settings: Key of the configuration -> value. ``bundle_root`` is the folder by default; ``tracking``
            is that of ``monai.bundle run``.

    Raises:
        ValueError: if a key is unknown, or on another mistake of a user, whose cause is found in MONAI's
            chain of exceptions.
        FileNotFoundError: if the folder holds no such bundle or overlay.
    """
    folder, settings = Path(bundle), dict(settings or {})
    files = [_json(folder, part) for part in ["train", *overlays, *([name] if name != "train" else [])]]
    settings.setdefault("bundle_root", str(folder))
    try:
        flow = FilesWorkflow(files, settings, settings.pop("tracking", None))
        with _errors_once():
            flow.initialize()
            flow.run()
            flow.finalize()
    except Exception as error:
        if (cause := find_cause(error)) is None:
            raise
        raise ValueError(cause) from error


@contextmanager
def _errors_once() -> Iterator[None]:
    """Keep Ignite and MONAI's StatsHandlers from logging an exception that is raised on."""
    engine = logging.getLogger("ignite.engine.engine")
    # by MONAI's function, which gives a logger its handler where nobody has asked for it before
    stats = [get_logger(name) for name in ("train", "validate")]  # the names in train.json
    level = engine.level

    def is_no_exception(record: logging.LogRecord) -> bool:
        return not record.exc_info

    engine.setLevel(logging.CRITICAL)
    for logger in stats:
        logger.addFilter(is_no_exception)
    try:
        yield
    finally:
        engine.setLevel(level)
        for logger in stats:
            logger.removeFilter(is_no_exception)


def run_words(
    name: str, bundle: PathLike, overlays: Sequence[str], words: Sequence[str], dataset_dir: str | None = None
) -> str:
    """Run a workflow with settings as one types them; errors are those of :func:`run_workflow`."""
    settings = {**({} if dataset_dir is None else {"dataset_dir": dataset_dir}), **settings_of(words)}
    if name == "train":
        settings = {"arguments": next_arguments(overlays, settings), **settings}
    run_workflow(name, bundle, overlays, settings)
    return ""


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """Return the settings in ``--KEY VALUE``, ``--KEY=VALUE`` and ``--KEY``, which is true.

    A value is a JSON or Python literal, or else text.

    Raises:
        ValueError: if a word is neither a key nor its value.
    """
    settings: dict[str, Any] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--") or not word.strip("-"):
            raise ValueError(
                f"{word!r} is no --KEY VALUE: the bundle comes first, then keys with their values."
            )
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "True"
        settings[key.replace("-", "_")] = parse_value(value)
    return settings


def next_arguments(overlays: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Return overlays and settings of a training as one types them for the next command."""
    words = [word for overlay in overlays for word in ("--overlay", overlay)]
    for key, value in settings.items():
        if key not in OF_TRAINING | RECORDED and not key.startswith("network_def#"):
            words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words)


def _json(folder: Path, name: str) -> Path:
    path = folder / f"{name}.json"
    if not path.is_file():
        there = sorted(p.stem for p in folder.glob("*.json"))
        has = f"it has {', '.join(there)}" if there else "monai-unetpp bundle NAME writes one"
        raise FileNotFoundError(f"{folder} has no {path.name}; {has}.")
    return path
