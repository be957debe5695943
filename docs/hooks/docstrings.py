# SPDX-License-Identifier: Apache-2.0
"""Docstrings as the site wants them: roles such as :func:`prune` become links, examples are shown as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|attr|data|mod):`(~?)\.?([\w.]+)`")


class HouseStyle(griffe.Extension):
    """Translates what our docstrings share with Sphinx into what mkdocstrings reads."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the text of one docstring, before it is parsed."""
        if obj.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            if obj.is_class and "NamedTuple" in map(str, obj.bases):  # it has no __init__ to take types from
                text = re.sub(r"^( *)Args:$", r"\1Attributes:", text, flags=re.MULTILINE)
            obj.docstring.value = ROLE.sub(lambda role: link(obj, *role.groups()), text)


def link(obj: griffe.Object, tilde: str, name: str) -> str:
    """A link to what is called ``name`` where ``obj`` stands; plain code if the site has no page on it."""
    first, *rest = name.split(".")
    try:
        path = ".".join([obj.resolve(first), *rest])
    except griffe.NameResolutionError:
        path = name
    shown = name.rsplit(".", 1)[-1] if tilde else name
    return f'<autoref identifier="{path}" optional>`{shown}`</autoref>'
