# SPDX-License-Identifier: Apache-2.0
"""Settings of an optimizer: those of now beside those in a training checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["Change", "changed_settings", "check_unchanged", "take_settings"]

RATE = "initial_lr"  # what a scheduler stores the learning rate of the beginning as
KEYS = {RATE: "learning_rate", "lr": "learning_rate", "weight_decay": "weight_decay"}  # keys of train.json
NO_SETTINGS = {"params", "param_names"}
CYCLED = {"betas", "momentum"}  # changed in each step by schedulers that cycle the momentum


@dataclass(frozen=True)
class Change:
    """A setting that is another one now.

    Args:
        optimizer: Optimizer of now.
        group: Number of its parameter group.
        option: Option of the group, such as ``"weight_decay"``.
        now: Value of now.
        before: Value in the checkpoint.
    """

    optimizer: Optimizer
    group: int
    option: str
    now: Any
    before: Any

    @property
    def key(self) -> str:
        """Return the key of train.json that sets it."""
        return KEYS.get(self.option, f"optimizer#{self.option}")


def changed_settings(targets: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> list[Change]:
    """Compare the optimizers among ``targets`` with their states in a checkpoint, before these are loaded."""
    changes = []
    scheduled = any(isinstance(target, LRScheduler) for target in targets.values())
    for name, target in targets.items():
        if isinstance(target, Optimizer):
            pairs = zip(target.param_groups, checkpoint[name]["param_groups"], strict=False)
            for n, (now, before) in enumerate(pairs):
                for option in _options(now, before, scheduled):
                    a, b = _plain(now[option]), _plain(before[option])
                    if a != b:
                        changes.append(Change(target, n, option, a, b))
    return changes


def check_unchanged(path: Path, changes: Sequence[Change]) -> None:
    """Raise if settings have changed.

    Raises:
        ValueError: with the name of each setting, its two values, and what to do.
    """
    if changes:
        first = {change.key: change for change in reversed(changes)}
        named = " and ".join(f"{key} is {c.now} now and {c.before} in {path}" for key, c in first.items())
        before = " ".join(f"--{key} {c.before}" for key, c in first.items())
        raise ValueError(f"{named}: resume with {before}, or with --resume_changes take to change it.")


def take_settings(changes: Sequence[Change], targets: Mapping[str, Any]) -> None:
    """Put the settings of now in place of those that were loaded; a schedule goes on at its epoch."""
    for change in changes:
        group = change.optimizer.param_groups[change.group]
        group[change.option] = change.now
        if change.option == RATE:
            group["lr"] = group["lr"] * change.now / change.before if change.before else change.now
            for target in targets.values():
                if isinstance(target, LRScheduler) and target.optimizer is change.optimizer:
                    target.base_lrs[change.group] = change.now


def _options(now: Mapping[str, Any], before: Mapping[str, Any], scheduled: bool) -> list[str]:
    """Return the options of a group that are settings, and not what a scheduler has made of them."""
    options = (now.keys() & before.keys()) - NO_SETTINGS
    if RATE in options or scheduled:
        options -= {"lr"}
    if "max_momentum" in now:
        options -= CYCLED
    return sorted(options)


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, Tensor) else value
    return tuple(value) if isinstance(value, list) else value
