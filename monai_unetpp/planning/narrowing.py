# SPDX-License-Identifier: Apache-2.0
"""A training in two parts: all levels first, then the chosen one and those above it alone.

The second part is a bundle of its own, whose network has the levels up to the chosen one and starts from
their weights. Its steps cost less, so that there are more of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_unetpp.planning.budget import relative_costs
from monai_unetpp.planning.choices import Choice, Plan
from monai_unetpp.planning.fingerprint import Fingerprint
from monai_unetpp.planning.patches import network_of
from monai_unetpp.planning.training import LOADING_FACTOR, mean_cost
from monai_unetpp.planning.writing import write_bundle

__all__ = ["FIRST_SHARE", "first_part", "second_part", "write_second_part"]

FIRST_SHARE = 0.4  # of the time, for all levels (benchmarks/results/narrowed.csv)
POWER = 0.9  # of the polynomial decay of the learning rate in train.json


def first_part(plan: Plan) -> Plan:
    """Return the plan of the first part, with all levels, of a plan for all of the time."""
    epochs = max(1, round(FIRST_SHARE * plan["max_epochs"]))
    why = f"{FIRST_SHARE:.0%} of the time; the rest is for the level that is chosen"
    changes: dict[str, tuple[Any, str]] = {"max_epochs": (epochs, why)}
    if plan["val_interval"] > epochs:
        changes["val_interval"] = (epochs, "not more than there are epochs")
    return _changed(plan, changes)


def second_part(plan: Plan, level: int) -> Plan:
    """Return the plan of the second part, of a network of ``level`` levels, from that of the first part.

    The learning rate begins where one polynomial decay over both parts would be.

    Raises:
        ValueError: if the network has no such level.
    """
    net = network_of(plan, plan["channels"], plan["strides"], plan["kernel_size"])
    net.check_level(level)
    costs = relative_costs(net, plan["roi_size"][: net.spatial_dims])
    loaded = (costs[level - 1] + LOADING_FACTOR - 1) / LOADING_FACTOR  # loading takes what it took
    cost = loaded / mean_cost(costs, plan["growth"] or [])  # of an epoch of the first part
    epochs = max(1, math.floor(plan["max_epochs"] * (1 - FIRST_SHARE) / FIRST_SHARE / cost))
    rate = float(f"{plan['learning_rate'] * (1 - FIRST_SHARE) ** POWER:.3g}")
    chosen = f"up to L{level}, which was chosen"
    return _changed(
        plan,
        {
            "channels": (plan["channels"][: level + 1], chosen),
            "strides": (plan["strides"][:level], chosen),
            "kernel_size": (plan["kernel_size"][: level + 1], chosen),
            "growth": (None, "the levels are trained already"),
            "learning_rate": (rate, "where one decay over both parts would be"),
            "max_epochs": (epochs, f"an epoch takes about {cost:.2f} of the time of one of the first part"),
        },
    )


def write_second_part(bundle: Path, out: Path, level: int, extra: Mapping[str, Any] | None = None) -> Plan:
    """Write the bundle of the second part, atomically; return its plan.

    Args:
        bundle: Folder of the first part.
        out: Folder to make; its name is the bundle's.
        level: Chosen level.
        extra: Contents of further JSON files, by name.

    Raises:
        FileExistsError: if ``out`` exists.
        ValueError: if the network has no such level.
    """
    choices: Mapping[str, Mapping[str, Any]] = _read(bundle / "plan" / "plan.json")
    plan = Plan([Choice(key, each["value"], each["reason"]) for key, each in choices.items()])
    narrowed = second_part(plan, level)
    fingerprint = Fingerprint.from_json(_read(bundle / "plan" / "fingerprint.json"))
    write_bundle(narrowed, fingerprint, out, extra)
    return narrowed


def _changed(plan: Plan, changes: Mapping[str, tuple[Any, str]]) -> Plan:
    return Plan(
        [Choice(each.key, *changes.get(each.key, (each.value, each.reason))) for each in plan.choices]
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
