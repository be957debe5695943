# SPDX-License-Identifier: Apache-2.0
"""What the processes of an evaluation have gathered, each of its own cases, together."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, TypeVar

import ignite.distributed as idist

__all__ = ["gather_cases"]

Case = TypeVar("Case")


def gather_cases(cases: list[Case]) -> list[Case]:
    """Return the cases of all processes, in the order in which a ``DistributedSampler`` shared them out.

    Every process has to call it. A case is any object that can be pickled, but None.
    """
    if idist.get_world_size() == 1:
        return cases
    shares: Any = idist.all_gather(cases)
    return [case for row in zip_longest(*shares) for case in row if case is not None]
