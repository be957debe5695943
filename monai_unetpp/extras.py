# SPDX-License-Identifier: Apache-2.0
"""Packages that are not needed for everything, and are named when they are."""

from __future__ import annotations

import importlib.util

__all__ = ["need"]


def need(extra: str, *packages: str) -> None:
    """Raise a ModuleNotFoundError that says how to install the first of ``packages`` that is not there."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f'{package} is not installed: pip install "monai-unetpp[{extra}]".')
