# SPDX-License-Identifier: Apache-2.0
"""From a fingerprint to the settings of a bundle: every rule has a reason, every setting can be given.

The rules and their sources are in ``docs/how-to/plan.md``; "Isensee" is F. Isensee et al., nnU-Net, Nature
Methods 18 (2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_unetpp.planning.choices import Choices, Machine, Plan
from monai_unetpp.planning.fingerprint import Fingerprint
from monai_unetpp.planning.given import check_given
from monai_unetpp.planning.images import choose_images
from monai_unetpp.planning.patches import choose_patch
from monai_unetpp.planning.training import choose_sampling, choose_schedule

__all__ = ["make_plan"]


def make_plan(fingerprint: Fingerprint, machine: Machine, given: Mapping[str, Any] | None = None) -> Plan:
    """Choose the settings of a bundle.

    Args:
        fingerprint: Fingerprint of the data set.
        machine: What a training may take.
        given: Settings that are not chosen but taken, by key; the others follow from them.

    Raises:
        ValueError: if there are fewer than two scans, ``given`` has an unknown key or a value of another
            kind, or not even the smallest patch fits in the memory.
    """
    check_given(given or {})
    choose = Choices(given or {})
    scans = len({case.scan or case.image for case in fingerprint.cases})
    if scans < 2:
        raise ValueError(
            f"{fingerprint.data} has {scans} scan that can be used: at least 2 are required, one to train on "
            "and one to validate with."
        )
    choose_images(choose, fingerprint)
    choose_patch(choose, fingerprint, machine)
    choose_schedule(choose, fingerprint, machine)
    choose_sampling(choose, fingerprint)
    unknown = choose.given.keys() - choose.made.keys()
    if unknown:
        raise ValueError(f"a plan has no {sorted(unknown)[0]!r}; it has {', '.join(choose.made)}.")
    return Plan(list(choose.made.values()))
