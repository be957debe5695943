# SPDX-License-Identifier: Apache-2.0
"""Segmenting in one process, or in each process that ``torchrun`` started, with one report."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from monai_unetpp.files import PathLike
from monai_unetpp.pictures import volume_text
from monai_unetpp.readers import is_picture
from monai_unetpp.segment.outcome import Outcome
from monai_unetpp.segment.run import segment

__all__ = ["Report", "segment_distributed"]

SHOWN = 10  # masks that a summary names
STATES = {
    "done": "segmented",
    "skipped": "had been done before",
    "locked": "are locked by another process",
    "failed": "failed",
}


@dataclass(frozen=True)
class Report:
    """Outcomes of all scans of a call.

    Args:
        outcomes: One outcome per scan, process after process.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def counts(self) -> Counter[str]:
        """Number of scans in each state."""
        return Counter(outcome.state for outcome in self.outcomes)

    @property
    def failed(self) -> list[Outcome]:
        """Outcomes of the scans that failed."""
        return [outcome for outcome in self.outcomes if outcome.state == "failed"]

    @property
    def exits(self) -> list[int]:
        """Number of windows that stopped at each level, shallowest first; empty without early exit."""
        return [sum(n) for n in zip(*(o.exits for o in self.outcomes if o.exits), strict=True)]

    def __str__(self) -> str:
        """Return the summary; then the masks with their volumes, the failures and the warnings by line."""
        line = ", ".join(f"{self.counts[key]} {words}" for key, words in STATES.items() if self.counts[key])
        stops = ", ".join(f"L{k}: {n}" for k, n in enumerate(self.exits, 1))
        summary = f"{line}." + (f" Windows that stopped at {stops}." if stops else "")
        failures = [outcome.reason for outcome in self.failed]
        warnings = [f"warning: {text}" for outcome in self.outcomes for text in outcome.warnings]
        return "\n  ".join([summary, *self._masks(), *failures, *warnings])

    def _masks(self) -> list[str]:
        done = [outcome for outcome in self.outcomes if outcome.mask]
        lines = [
            f"{each.mask}: "
            + ", ".join(f"{name} {volume_text(ml, is_picture(each.image))}" for name, ml in each.volumes)
            + _number_of_findings(each)
            for each in done[:SHOWN]
        ]
        return lines + ([f"and {len(done) - SHOWN} more masks"] if len(done) > SHOWN else [])


def segment_distributed(
    input_dir: PathLike,
    output_dir: PathLike,
    bundle: PathLike,
    level: int | str = "auto",
    overlays: Sequence[str] = (),
    **settings: Any,
) -> Report:
    """Segment scans in one process, or in each process that ``torchrun`` started.

    Args:
        input_dir: Scan or folder of scans, see :func:`~monai_unetpp.data.list_volumes`.
        output_dir: Folder of the masks.
        bundle: Folder of the bundle.
        level: Level ``k`` of L^k; ``"auto"``, the calibrated one, or the deepest; ``"early-exit"``.
        overlays: Names of further JSONs of the bundle that are merged over its ``inference.json``.
        **settings: Further arguments of :func:`segment`.

    Returns:
        The outcomes of all processes, also of scans that failed; other errors are those of :func:`segment`.
    """
    settings |= _level_settings(level, overlays)
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number == 1:
        return Report(tuple(segment(input_dir, output_dir, bundle, **settings)))
    dist.init_process_group("gloo")
    try:
        rank = dist.get_rank()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        settings["progress"] = settings.get("progress", False) and rank == 0
        mine = segment(input_dir, output_dir, bundle, share=(rank, number), **settings)
        shares: list[list[Outcome]] = [[] for _ in range(number)]
        dist.all_gather_object(shares, mine)
        return Report(tuple(outcome for share in shares for outcome in share))
    finally:
        dist.destroy_process_group()


def _number_of_findings(outcome: Outcome) -> str:
    if outcome.findings is None:
        return ""
    count = len(outcome.findings)
    return f"{'; ' if outcome.volumes else ''}{count or 'no'} finding{'s' * (count != 1)}"


def _level_settings(level: int | str, overlays: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of :func:`segment` that select a level."""
    if level == "early-exit":
        return {"overlays": (*overlays, "early_exit")}
    if isinstance(level, int) or level == "auto":
        return {"level": level, "overlays": overlays}
    raise ValueError(f"level must be a number, auto or early-exit, got {level}.")
