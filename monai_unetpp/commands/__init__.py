# SPDX-License-Identifier: Apache-2.0
"""The commands of ``monai-unetpp``, by name, in the order in which its help lists them.

A command is one function: it adds its arguments to the parser that it is given, and returns a function from
the parsed arguments to a result, which is printed. Its name is that of the command, its docstring the help.
Commands import what they use when they run: ``--help`` is quick.
"""

from monai_unetpp.commands.data import lidc, phantom, slices
from monai_unetpp.commands.hosts import auto3dseg, nnunet
from monai_unetpp.commands.own_data import fit, plan
from monai_unetpp.commands.scans import segment
from monai_unetpp.commands.shared import Declare
from monai_unetpp.commands.weights import bundle, pack, prune
from monai_unetpp.commands.workflows import evaluate, findings, levels, train

__all__ = ["COMMANDS"]

_LISTED: tuple[Declare, ...] = (
    *(fit, plan, train, evaluate, levels, findings, segment, pack, prune, bundle),
    *(nnunet, auto3dseg, lidc, slices, phantom),
)
COMMANDS = {declare.__name__: declare for declare in _LISTED}
