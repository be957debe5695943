# SPDX-License-Identifier: Apache-2.0
"""What reaches the console of other libraries.

- find_cause: the user's mistake in a chain of exceptions, of which MONAI adds one per transform and component
- name_cause_last: that, as the last line of ``python -m monai.bundle``
- quiet_libraries: messages that a user can do nothing about
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from types import TracebackType

__all__ = ["find_cause", "name_cause_last", "quiet_libraries"]

MISTAKES = (ImportError, OSError, ValueError)
IN_WORKER = re.compile(
    r"^(?:ImportError|ModuleNotFoundError|\w*OSError|File\w+Error|ValueError): (.+)$", re.M
)


def find_cause(error: BaseException) -> str | None:
    """Return the message of the first exception in a chain that tells of a user's mistake, in one line.

    Args:
        error: Exception as it arrived, raised from others or while others were handled.

    Returns:
        The message; ``None`` if there is none, so that the exception is a bug.
    """
    for each in _chain(error):
        if in_worker := IN_WORKER.search(str(each)) if "Original Traceback" in str(each) else None:
            return in_worker[1]
        if isinstance(each, MISTAKES) or type(each).__name__ == "OutOfMemoryError":
            return " ".join(str(each).split())
    return None


def name_cause_last() -> None:
    """Let ``python -m monai.bundle`` end in the cause of an error, below its traceback.

    Any other program is left as it is.
    """
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if getattr(main, "name", None) == "monai.bundle.__main__" and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_cause_last


def quiet_libraries() -> None:
    """Filter messages of MONAI that a user of the command line can do nothing about."""
    plugin = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    plugin.setLevel(logging.ERROR)  # a decoder for GPUs, which is not used here
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader: nvImageCodec")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"monai\.")  # MONAI's own defaults


def _print_cause_last(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    if cause := find_cause(error):
        sys.stderr.write(f"error: {cause}\n")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
