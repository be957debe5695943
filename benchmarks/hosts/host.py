# SPDX-License-Identifier: Apache-2.0
"""What the scripts for hosts share: environments, a tiny packed bundle, and the mask that it has to give."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from monai_unetpp.bundle import copy_bundle, pack_bundle
from monai_unetpp.data.phantoms import write_phantoms
from monai_unetpp.planning import Source, plan_bundle

ROOT = Path(__file__).parents[2]
CHANNELS = [8, 16, 32]


def argument_parser(text: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every script."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=text, formatter_class=form)
    made = "virtual environment, made if missing"
    parser.add_argument("--environment", type=Path, required=True, help=made)
    parser.add_argument("--work", type=Path, required=True, help="folder to make")
    planned = "a bundle that monai-unetpp plan writes, in place of the liver bundle"
    parser.add_argument("--planned", action="store_true", help=planned)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments of the command line; ends the process if there is a folder in the way."""
    arguments = parser.parse_args()
    if arguments.work.exists():
        parser.error(f"--work must not exist: {arguments.work}")
    return arguments


def make_environment(folder: Path, *packages: str, constraints: Sequence[str] = ()) -> None:
    """Install a host in a virtual environment, unless it is there, and then this package.

    Two steps, because MONAI 1.5 pins a pytorch-ignite that is older than the one that this package requires.
    """
    if folder.exists():
        return
    venv.create(folder, with_pip=True)
    pins = [word for file in constraints for word in ("-c", file)]
    run(folder, "pip", "install", "-q", *pins, *packages)
    run(folder, "pip", "install", "-q", *pins, "-e", ROOT)


def write_bundle(out: Path, work: Path, planned: bool = False) -> Path:
    """Pack the liver bundle, or one that was planned, with a tiny network that has learned nothing yet."""
    source = _plan(work) if planned else copy_bundle("liver", work / "bundles")
    for name in () if planned else ("train", "inference"):
        path = source / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "channels": CHANNELS}))
    torch.manual_seed(0)
    config = ConfigParser.load_config_file(source / "inference.json")
    torch.save(ConfigParser(config).get_parsed_content("network_def").state_dict(), work / "untrained.pt")
    return pack_bundle(source, work / "untrained.pt", out)


def _plan(work: Path) -> Path:
    data, out = work / "planned_data", work / "bundles" / "planned"
    write_phantoms(data, "liver", 4, seed=2)
    out.parent.mkdir(parents=True, exist_ok=True)
    given = {"channels": CHANNELS, "pixdim": [5.0, 5.0, 5.0], "roi_size": [40, 40, 40]}
    plan_bundle(Source(data), out, hours=0.1, device="cpu", given=given)
    return out


def segment(scan: Path, masks: Path, bundle: Path, *options: str) -> Path:
    """Return the path of the mask of ``monai-unetpp segment``."""
    command = [sys.executable, "-m", "monai_unetpp", "segment", "-i", scan, "-o", masks, "--bundle", bundle]
    subprocess.run([*map(str, command), *options], check=True, capture_output=True)
    [mask] = masks.rglob("*.nii.gz")
    return mask


def run(environment: Path, *words: Any) -> None:
    """Run a command of a virtual environment; raises if it fails."""
    subprocess.run([str(word) for word in words], env=variables(environment), check=True)


def variables(environment: Path) -> dict[str, str]:
    """Return the variables of a process in a virtual environment."""
    return {**os.environ, "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
