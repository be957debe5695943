# SPDX-License-Identifier: Apache-2.0
"""Names that were public and have changed still work, and warn."""

import importlib

import pytest

RENAMED = {
    "data.Phantom": "data.phantoms.Phantom",
    "data.chest_phantom": "data.phantoms.chest_phantom",
    "data.liver_phantom": "data.phantoms.liver_phantom",
    "data.write_liver_phantoms": "data.phantoms.write_liver_phantoms",
    "data.write_phantoms": "data.phantoms.write_phantoms",
    "extras.need": "extras.require",
    "inferers.doubt": "inferers.window_uncertainty",
    "files.left_over": "files.stale_parts",
    "files.whole_file": "files.atomic_write",
    "files.whole_folder": "files.atomic_directory",
}


def look_up(dotted):
    room, name = f"monai_unetpp.{dotted}".rsplit(".", 1)
    return getattr(importlib.import_module(room), name)


@pytest.mark.parametrize(("old", "new"), RENAMED.items(), ids=RENAMED)
def test_an_old_name_is_the_new_one_and_warns(old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is deprecated: use monai_unetpp.{new}."):
        found = look_up(old)
    assert found is look_up(new)


def test_other_names_are_errors_as_in_any_module():
    with pytest.raises(AttributeError, match=r"'monai_unetpp\.files' has no attribute 'whole_fil'"):
        look_up("files.whole_fil")
