# SPDX-License-Identifier: Apache-2.0
"""Settings that are chosen, or given, one after another, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FAMILY", "Choice", "Choices", "Machine", "Plan"]

FAMILY = {"dense": "UNet++", "short": "UNet+", "long": "U-Net^e"}  # by its skips


@dataclass(frozen=True)
class Machine:
    """What a training may take.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        memory: Bytes for a training step.
        speed: Multiply-adds per second of training steps.
        hours: Time of the training, h.
        cache: Bytes for cases that are kept in memory.
        workers: Processes that load cases.
    """

    device: str = "cpu"
    memory: float = 8 * 2**30
    speed: float = 3e10
    hours: float = 1.0
    cache: float = 4 * 2**30
    workers: int = 0


@dataclass(frozen=True)
class Choice:
    """A setting, and why it has this value."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Plan:
    """Settings of a bundle by key, with their reasons, in the order in which they were chosen."""

    choices: list[Choice]

    def __getitem__(self, key: str) -> Any:
        """Return the value of a setting."""
        return next(choice.value for choice in self.choices if choice.key == key)

    def lines(self) -> list[str]:
        """Return one line per choice: key, value, reason."""
        width = max(len(choice.key) for choice in self.choices)
        shown = [(c.key, c.value, c.reason) for c in self.choices]
        return [f"{key:{width}}  {value}\n{'':{width}}    {reason}" for key, value, reason in shown]


class Choices:
    """Collects choices; a value that was given wins over the rule."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given, self.made = dict(given), dict[str, Choice]()

    def make(self, key: str, rule: Callable[[], tuple[Any, str]]) -> Any:
        """Choose a setting by a rule, which returns its value and the reason, unless it was given."""
        value, reason = (self.given[key], "given") if key in self.given else rule()
        self.made[key] = Choice(key, value, reason)
        return value

    def __getitem__(self, key: str) -> Any:
        """Return the value of a setting."""
        return self.made[key].value
