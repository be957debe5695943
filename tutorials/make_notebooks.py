# SPDX-License-Identifier: Apache-2.0
"""Run the tutorials, and write each with what it printed and drew as a notebook into ``notebooks``.

From this folder: pip install -e "..[notebooks]" && python make_notebooks.py [01 05 ...]

The Python files are the source: cells are taken from them as they are. Each runs in a folder that is gone
afterwards. Progress bars are left out, pictures get a palette, and anything else on stderr is an error, so
that no warning ends up in a notebook unseen.
"""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
PROGRESS = re.compile(r"\r|\d+%\|")
HARMLESS = re.compile(
    r".*TqdmWarning: IProgress not found.*\n.*\n"  # progress bars are text, then
    r"|nvImageCodec is not available.*\n"  # MONAI 1.6 looks for a decoder on GPUs, twice
    r"|.*NvImgCodecPydicomReader: nvImageCodec.*\n.*\n"
)


def cells(text: str) -> list[tuple[str, str]]:
    """Split Python in percent format into cells: ``"markdown"`` or ``"code"``, and what is in it.

    What comes before the first cell, the licence, is left out.
    """
    found = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        kind, body = part.split("\n", 1)
        if kind.strip() == "[markdown]":
            found.append(("markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip()))
        else:
            found.append(("code", body.strip()))
    return found


def run(text: str) -> Any:
    """Return the notebook of a tutorial, run from top to bottom.

    Raises:
        RuntimeError: if it writes to stderr anything but progress bars, or prints a path of this machine.
    """
    import nbformat
    from nbclient import NotebookClient

    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    notebook = nbformat.v4.new_notebook(
        cells=[make[kind](source, id=f"cell-{n}") for n, (kind, source) in enumerate(cells(text))],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        },
    )
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
        machine = (folder, sys.prefix, str(HERE.parent), str(Path.home()))
    notebook.metadata.language_info = {"name": "python"}  # not the version of this one
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := tidy(output, machine))]
            cell.metadata = {}
    return notebook


def tidy(output: Any, machine: tuple[str, ...]) -> Any:
    """Return an output as it is kept, or ``None``."""
    if output.output_type == "stream":
        if output.name == "stderr":
            lines = HARMLESS.sub("", output.text).splitlines()
            rest = [line for line in lines if line.strip() and not PROGRESS.search(line)]
            if rest:
                raise RuntimeError("on stderr: " + "\n".join(rest))
            return None
        if any(path in output.text for path in machine):
            raise RuntimeError("a path of this machine is printed: " + output.text)
    elif "image/png" in output.data:
        output.data = {"image/png": small(output.data["image/png"]), "text/plain": "<a picture>"}
        output.metadata = {}
    return output


def small(png: str) -> str:
    """Return a picture, PNG in base64, with a palette of 256 colours: a third of the size."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256)
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main(numbers: list[str]) -> None:
    """Write the notebooks of the tutorials with these numbers, or all of them."""
    import nbformat

    (HERE / "notebooks").mkdir(exist_ok=True)
    for tutorial in sorted(HERE.glob("[0-9]*.py")):
        if numbers and tutorial.name[:2] not in numbers:
            continue
        path = HERE / "notebooks" / f"{tutorial.stem}.ipynb"
        nbformat.write(run(tutorial.read_text(encoding="utf-8")), path)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
