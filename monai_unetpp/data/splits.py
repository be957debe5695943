# SPDX-License-Identifier: Apache-2.0
"""Splitting a data set into training and validation cases."""

from __future__ import annotations

from collections.abc import Sequence

from monai.data import partition_dataset

__all__ = ["split_cases"]

Cases = list[dict[str, str]]


def split_cases(cases: Sequence[dict[str, str]], val_fraction: float, seed: int) -> tuple[Cases, Cases]:
    """Split cases into training and held-out validation cases; those of one ``"scan"`` stay together.

    Args:
        cases: Cases as :func:`~monai_unetpp.data.read_dataset` returns them.
        val_fraction: Share of the scans that is held out, in (0, 1).
        seed: Seed of the split, which depends on nothing else.

    Raises:
        ValueError: if ``val_fraction`` is not between 0 and 1.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction!r}.")
    scans: dict[str, Cases] = {}
    for case in cases:
        scans.setdefault(case.get("scan", case["image"]), []).append(case)
    ratios = [1 - val_fraction, val_fraction]
    train, held_out = partition_dataset(list(scans.values()), ratios, shuffle=True, seed=seed)
    return [case for scan in train for case in scan], [case for scan in held_out for case in scan]
