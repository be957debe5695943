# SPDX-License-Identifier: Apache-2.0
"""What became of one scan."""

from __future__ import annotations

from dataclasses import dataclass

from monai_unetpp.findings import Finding

__all__ = ["Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What became of one scan.

    Args:
        image: Path of the scan.
        state: ``"done"``; ``"skipped"``, because its results exist; ``"locked"``, because another process is
            segmenting it; or ``"failed"``.
        reason: Reason of the failure.
        seconds: Time from the loaded volume to the written mask, s.
        exits: Number of windows that stopped at each level by early exit, shallowest first.
        uncertainty: Expected error of the case, in [0, 1], if it was asked for; see
            :class:`~monai_unetpp.inferers.Segmentation`.
        warnings: What looked odd about the scan when it was loaded, such as voxels that are not HU.
        mask: Path of the mask, if this run wrote it.
        volumes: Name and volume, ml, of each class of the mask, or of each region.
        findings: Findings, if they were measured, the most confident first.
    """

    image: str
    state: str
    reason: str = ""
    seconds: float = 0.0
    exits: tuple[int, ...] = ()
    uncertainty: float | None = None
    warnings: tuple[str, ...] = ()
    mask: str = ""
    volumes: tuple[tuple[str, float], ...] = ()
    findings: tuple[Finding, ...] | None = None
