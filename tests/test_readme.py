# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run_in_order():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert tuple(scope["y"].shape) == (1, 3, 48, 48, 40)  # as its comment says


def test_readme_is_short():
    assert len(README.splitlines()) < 130


def test_continuous_integration_finds_the_second_command():
    (pattern,) = re.findall(
        r"grep -m 1 -E '(.*?)' README\.md", (ROOT / ".ci/run").read_text(encoding="utf-8")
    )
    commands = [line for line in README.splitlines() if re.search(pattern, line)]
    assert len(commands) == 1


def test_files_that_the_readmes_name_exist():
    for readme in [ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("bundles/*/README.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", readme.read_text(encoding="utf-8")):
            assert (readme.parent / link).exists(), f"{readme} names {link}"
