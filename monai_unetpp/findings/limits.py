# SPDX-License-Identifier: Apache-2.0
"""The smallest and the least certain findings that are kept, given with their units."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Limits", "parse_limits"]

# unit, in lower case -> mm^3, mm
VOLUMES = {"mm3": 1.0, "mm^3": 1.0, "mm³": 1.0, "ml": 1e3, "cm3": 1e3, "cm^3": 1e3, "cm³": 1e3, "cc": 1e3}
LENGTHS = {"mm": 1.0, "cm": 10.0}
NUMBER = r"\d+(?:\.\d*)?|\.\d+"
ROUNDING = 1 - 1e-6  # what is exactly as large as a limit is kept, however it was computed


@dataclass(frozen=True)
class Limits:
    """What is below one of the limits is dropped, from mask and table; 0 drops nothing.

    Args:
        min_volume_mm3: Smallest volume, mm^3.
        min_diameter_mm: Smallest long axis, mm.
        min_confidence: Smallest confidence, or mean probability of a class whose confidence was not
            calibrated, in [0, 1]; by name of a class, or one number for all.
    """

    min_volume_mm3: float = 0.0
    min_diameter_mm: float = 0.0
    min_confidence: float | Mapping[str, float] = 0.0

    def given(self) -> dict[str, Any]:
        """Return those that drop something."""
        return {name: value for name, value in asdict(self).items() if value}

    def keep(
        self,
        volume_mm3: float = math.inf,
        diameter_mm: float = math.inf,
        confidence: float = math.inf,
        label: str = "",
    ) -> bool:
        """Whether what is known of a finding, of the class ``label``, is above all limits."""
        least = self.min_confidence
        least = least.get(label, 0.0) if isinstance(least, Mapping) else least
        return (
            volume_mm3 >= ROUNDING * self.min_volume_mm3
            and diameter_mm >= ROUNDING * self.min_diameter_mm
            and confidence >= ROUNDING * least
        )


def parse_limits(
    min_volume: str | None = None, min_diameter: str | None = None, min_confidence: float | str | None = None
) -> Limits:
    """Return limits from text with units.

    Args:
        min_volume: Such as ``"30mm3"`` or ``"0.03ml"``.
        min_diameter: Such as ``"4mm"`` or ``"0.4 cm"``.
        min_confidence: Such as ``0.5``.

    Raises:
        ValueError: if a unit is missing or unknown, or a value is negative or not a number.

    Example:
        >>> parse_limits("0.03 mL", "4mm").given()
        {'min_volume_mm3': 30.0, 'min_diameter_mm': 4.0}
    """
    return Limits(
        _quantity("min_volume", "a volume", min_volume, VOLUMES, "30mm3 or 0.03ml"),
        _quantity("min_diameter", "a length", min_diameter, LENGTHS, "4mm or 0.4cm"),
        _share(min_confidence),
    )


def _quantity(name: str, what: str, text: str | None, units: dict[str, float], example: str) -> float:
    if text is None:
        return 0.0
    found = re.fullmatch(rf"\s*({NUMBER})\s*(\S*)\s*", str(text))
    unit = found[2].lower() if found else ""
    if found is None or unit not in units:
        option = f"--{name.replace('_', '-')}"
        raise ValueError(f"{name} ({option}) must be {what} with its unit, such as {example}, got {text!r}.")
    return round(float(found[1]) * units[unit], 9)


def _share(value: float | str | None) -> float:
    if value is None:
        return 0.0
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(
            f"min_confidence (--min-confidence) must be a probability, 0 to 1, such as 0.5, got {value!r}."
        )
    return share
