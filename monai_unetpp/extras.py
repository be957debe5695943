# SPDX-License-Identifier: Apache-2.0
"""Optional packages, required where they are used, and deprecated names, which are imported lazily."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

__all__ = ["renamed", "require"]


def require(extra: str, *packages: str) -> None:
    """Raise a ModuleNotFoundError that tells how to install the first of ``packages`` that is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f'{package} is not installed: pip install "monai-unetpp[{extra}]".')


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module, which serves old names with a DeprecationWarning.

    Args:
        module: Dotted name of the module.
        names: Old name -> dotted path of what replaces it, which is imported on first use only.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is deprecated: use {names[name]}.", DeprecationWarning, stacklevel=2)
        room, _, new = names[name].rpartition(".")
        return getattr(importlib.import_module(room), new)

    return find


if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = renamed(__name__, {"need": f"{__name__}.require"})
