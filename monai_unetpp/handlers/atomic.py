# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in files: written atomically, retried, never with weights that are not finite."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.handlers.checkpoint import BaseSaveHandler
from torch import nn

from monai_unetpp.files import atomic_write, save_by_memory

__all__ = ["EPOCH", "AtomicSaver", "checkpoints_in"]

EPOCH = "checkpoint_epoch={}.pt"
RETRY_SECONDS = (1, 5)  # before the next attempts to write a checkpoint

logger = logging.getLogger(__name__)


class AtomicSaver(BaseSaveHandler):
    """Write checkpoints atomically, in the first process.

    Args:
        folder: Folder to write to.
        filename: Name of the only file, which is replaced; by default every checkpoint has its own.
        saved: Name -> object that is saved.

    Attributes:
        saved_as: Function that is called with the path of a file that was written.
    """

    saved_as: Callable[[Path], None] | None = None

    def __init__(self, folder: Path, filename: str | None, saved: Mapping[str, Any]) -> None:
        self.folder = folder
        self.filename = filename
        self.saved = saved

    @idist.one_rank_only()
    def __call__(self, checkpoint: Any, filename: str, metadata: Any = None) -> None:  # noqa: ARG002
        """Write a checkpoint; ``filename`` is used unless there is a fixed one."""
        path = self.folder / (self.filename or filename)
        self._check_finite(path)
        for wait in (*RETRY_SECONDS, None):
            try:
                with atomic_write(path) as part:
                    save_by_memory(part, partial(torch.save, checkpoint))
                if self.saved_as is not None:
                    self.saved_as(path)
                return
            except OSError as error:
                if wait is None:
                    raise OSError(
                        f"{path} could not be saved: {error.strerror or error}. --ckpt_dir names another "
                        f"folder. {self._last_good()}"
                    ) from error
                logger.warning(f"{path} could not be saved: {error}. Retrying in {wait} s.")
                time.sleep(wait)

    @idist.one_rank_only()
    def remove(self, filename: str) -> None:
        """Remove a file, unless the next one replaces it."""
        if self.filename is None:
            (self.folder / filename).unlink(missing_ok=True)

    def _check_finite(self, path: Path) -> None:
        for name, target in self.saved.items():
            wrong = [
                key
                for key, value in (target.state_dict() if isinstance(target, nn.Module) else {}).items()
                if not torch.isfinite(value).all()
            ]
            if wrong:
                raise ValueError(
                    f"{path} is not saved: {name} is not finite in {wrong[0]} and {len(wrong) - 1} more. "
                    f"{self._last_good()}"
                )

    def _last_good(self) -> str:
        found = checkpoints_in(self.folder)
        return f"--resume True continues from {found[max(found)]}." if found else "No epoch was saved yet."


def checkpoints_in(directory: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder by epoch; copies of other names are none."""
    found = {path: path.stem.split("=")[1] for path in directory.glob(EPOCH.format("*"))}
    return {int(epoch): path for path, epoch in found.items() if epoch.isdecimal()}
