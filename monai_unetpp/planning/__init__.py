# SPDX-License-Identifier: Apache-2.0
"""A bundle for one's own data, every choice explained.

- measuring, fingerprint: what the cases are like, one by one
- problems: what does not fit, by file
- rules: from a fingerprint to settings, each with its reason; images, patches, training: their parts
- budget: memory and time of a training step
- writing: the bundle
- narrowing: a training in two parts, all levels first, then the chosen one alone
- command: all of it
"""

from monai_unetpp.planning.choices import Choice, Machine, Plan
from monai_unetpp.planning.command import parse_memory, plan_bundle
from monai_unetpp.planning.fingerprint import Fingerprint, take_fingerprint
from monai_unetpp.planning.measuring import CaseFacts
from monai_unetpp.planning.narrowing import write_second_part
from monai_unetpp.planning.rules import make_plan
from monai_unetpp.planning.source import Source

__all__ = [
    "CaseFacts",
    "Choice",
    "Fingerprint",
    "Machine",
    "Plan",
    "Source",
    "make_plan",
    "parse_memory",
    "plan_bundle",
    "take_fingerprint",
    "write_second_part",
]
