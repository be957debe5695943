# SPDX-License-Identifier: Apache-2.0
"""What a bundle that ``monai.bundle`` runs checks first.

MONAI merges what the command line says into the configuration before anything of ours runs, and gives an
expression no access to the configuration that it stands in. The running workflow is therefore looked up among
the callers, and its configuration is compared with the JSONs as they lie on the disk.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.utils import ensure_tuple

from monai_unetpp.bundle.settings import MONAIS_OWN, PATHS, apply_record, check_keys
from monai_unetpp.errors import name_cause_last
from monai_unetpp.files import PathLike
from monai_unetpp.weights import plain, read_record

__all__ = ["Running", "check_run", "running", "use_record"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """Workflow of ``monai.bundle`` that is being initialized.

    Args:
        parser: Its parser.
        folder: Folder of its first JSON.
        files: Paths of its JSONs in the order of merging; empty where MONAI's workflow was made from Python,
            which does not keep them.
    """

    parser: ConfigParser
    folder: Path
    files: tuple[Path, ...] = ()

    @cached_property
    def names(self) -> str:
        """Names of the JSONs, for messages."""
        return " + ".join(path.name for path in self.files) or str(self.folder)

    @cached_property
    def on_disk(self) -> Mapping[str, Any]:
        """Configuration without the values of the command line; of all JSONs if ``files`` is empty."""
        if self.files:
            return ConfigParser.load_config_files([str(path) for path in self.files])
        merged: dict[str, Any] = {}
        for path in sorted(p for p in self.folder.glob("*.json") if p.stem != "metadata"):
            for key, value in ConfigParser.load_config_file(path).items():
                merged.setdefault(key.lstrip("+").replace("::", "#").split("#")[0], value)
        return merged

    @cached_property
    def explicit(self) -> set[str]:
        """Keys whose values differ from the first JSON, or, if it is not known, from all that were merged."""
        configs = [ConfigParser(ConfigParser.load_config_file(path)) for path in self.files[:1]]
        configs = configs or list(self._merged())
        network = {f"network_def#{name}" for name in self.parser.get("network_def", {})}
        return {
            key
            for key in (*self.parser.get(), *network)
            if key not in MONAIS_OWN and all(plain(self.parser[key]) != _at(each, key) for each in configs)
        }

    def _merged(self) -> Iterator[ConfigParser]:
        """Yield the JSONs of the folder of which the configuration has most values."""
        here = self.parser.get()
        for path in sorted(p for p in self.folder.glob("*.json") if p.stem != "metadata"):
            config = ConfigParser(ConfigParser.load_config_file(path))
            keys = [key for key in config.get() if key not in MONAIS_OWN]
            if 2 * sum(plain(here.get(key)) == _at(config, key) for key in keys) > len(keys):
                yield config

    def given(self) -> Iterator[str]:
        """Yield the keys that the configuration has and the JSONs do not."""
        settings: Any = DEFAULT_EXP_MGMT_SETTINGS  # of --tracking, which MONAI adds
        tracking = {key for each in settings.values() for key in each["configs"]}
        here = {key: value for key, value in self.parser.get().items() if key not in tracking}
        yield from _new_keys(here, self.on_disk, deep=bool(self.files))


def check_run() -> None:
    """Refuse keys that the JSONs of the running bundle do not have, and a copy that would write elsewhere.

    From here on an error of ``python -m monai.bundle`` ends in its cause. Where no workflow of MONAI is
    running this does nothing.

    Raises:
        ValueError: if there is such a key, such as ``--max_epoch`` beside ``max_epochs``; the message has the
            nearest ones. If MONAI's command line leaves out a value, ``None``. If a path has a ``#``. If
            ``bundle_root`` is by default another folder than that of the JSONs, as in a bundle that was
            copied.
    """
    name_cause_last()
    run = running()
    if run is None:
        return
    _check_ignored(run)
    check_keys(run.on_disk, run.given(), run.names)
    _check_paths(run)
    root, folder = run.on_disk.get("bundle_root"), run.folder
    folder = folder.parent if folder.name == "configs" else folder
    given = run.parser.get().get("bundle_root")
    if root == given and isinstance(root, str) and root != "." and Path(root).resolve() != folder.resolve():
        raise ValueError(
            f"bundle_root must be {folder}, the folder of {run.names}, got {root}, to which this "
            f'would write: set "bundle_root": "{folder.as_posix()}" in train.json and inference.json, or run '
            f"it in the folder that has {root}; --bundle_root FOLDER names any other."
        )


def _check_ignored(run: Running) -> None:
    """Refuse ``--key None``, which MONAI's command line leaves out: the value of the JSON would stay."""
    program, *words = sys.argv
    if Path(program).parts[-3:] != ("monai", "bundle", "__main__.py"):
        return
    given = [*(word.split("=", 1) for word in words if "=" in word), *pairwise(words)]
    for key in (key[2:] for key, value in given if key.startswith("--") and value == "None"):
        if (value := run.parser.get(key)) is not None:
            raise ValueError(
                f"--{key} None is left out by MONAI's command line, and {key} would be {plain(value)}: write "
                f"--{key} '$None'."
            )


def _check_paths(run: Running) -> None:
    """Refuse paths in which MONAI's command line has replaced ``#`` by ``::``."""
    for key in PATHS:
        path, default = (config.get(key) for config in (run.parser.get(), run.on_disk))
        if isinstance(path, str) and "::" in path and path != default:
            raise ValueError(
                f"{key} must be a path without '#', which MONAI's command line reads as '::', got {path}: "
                "rename the folder, or use monai-unetpp train, evaluate or levels, which take any path."
            )


def use_record(weights: PathLike, override: bool = False) -> None:
    """Give the running bundle the settings of its weights, by their record; without one nothing changes.

    Args:
        weights: Path of the weights.
        override: Whether values of the command line and of overlays win where the record disagrees.

    Raises:
        ValueError: if a value that was given disagrees with the record and ``override`` is false.
    """
    run, record = running(), read_record(weights)
    if run is None or record is None:
        logger.info(f"{weights} has no record: the values of the configuration are used.")
        return
    apply_record(run.parser, record, run.explicit, weights, override)
    run.parser.parse(reset=True)  # what is resolved from here on has the new values


def _at(config: ConfigParser, key: str) -> Any:
    """Return a value of a JSON as a parsed configuration has it, in which ``#`` is ``::``."""
    try:
        value = plain(config[key])
    except (KeyError, ValueError):
        return None
    return value.replace("#", "::") if isinstance(value, str) else value


def running() -> Running | None:
    """Return the workflow of ``monai.bundle`` among the callers of the calling function, if there is one."""
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), ConfigWorkflow):
        frame = frame.f_back
    if frame is None:
        return None
    workflow: ConfigWorkflow = frame.f_locals["self"]
    files = getattr(workflow, "files", ())  # of our commands
    while not files and frame is not None:
        if frame.f_code.co_name == "create_workflow":  # MONAI's function, which knows them
            files = tuple(Path(path) for path in ensure_tuple(frame.f_locals.get("config_file") or ()))
            break
        frame = frame.f_back
    return Running(workflow.parser, Path(workflow.config_root_path), files)


def _new_keys(here: Any, there: Any, above: Sequence[str] = (), deep: bool = True) -> Iterator[str]:
    """Yield the keys of ``here`` that ``there`` lacks, those inside of others only where both have these."""
    if not isinstance(here, Mapping) or not isinstance(there, Mapping):
        return
    if above and here.get("_target_") != there.get("_target_"):
        return  # a part that was replaced
    for key, value in here.items():
        if key in MONAIS_OWN:
            continue
        if key not in there:
            yield "#".join([*above, key])
        elif deep:
            yield from _new_keys(value, there[key], [*above, key])
