# SPDX-License-Identifier: Apache-2.0
"""A real server of MONAI Label on loopback with a packed bundle: infer, train, score, choose the next image.

    python benchmarks/hosts/label.py --environment LABEL --work WORK

makes a virtual environment in LABEL, if there is none, and everything else in WORK. Prints a line for each
step and stops at the first that is not as it should be.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from host import argument_parser, make_environment, parse, run, say, segment, variables, write_bundle

from monai_unetpp.data.phantoms import write_phantoms

NAME = "liver_ct_unetpp"
LABELLED, UNLABELLED = 6, 3


def main() -> None:
    """Make what is missing, start the server, visit it, stop it."""
    parser = argument_parser(__doc__)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--epochs", type=int, default=30, help="of the first training (default: %(default)s)")
    arguments = parse(parser)
    pins = str(Path(__file__).with_name("label_constraints.txt"))
    make_environment(arguments.environment, "monailabel==0.8.5", constraints=[pins])
    studies, references = write_studies(arguments.work)
    app = arguments.work / "monaibundle"
    run(
        arguments.environment,
        "monailabel",
        "apps",
        "--download",
        "--name",
        app.name,
        "--output",
        arguments.work,
    )
    bundle = write_bundle(app / "model" / NAME, arguments.work, arguments.planned)
    with Server(arguments.environment, app, studies, arguments.port) as server:
        visit(server, bundle, studies, references, arguments.epochs)
    say("stopped the server")


def visit(server: Server, bundle: Path, studies: Path, references: Path, epochs: int) -> None:
    """Go through what an annotator's client asks for; raises where an answer is not the right one."""
    info = server.ask("GET", "/info/")
    assert all(NAME in info[kind] for kind in ("models", "trainers", "scoring")), info
    model = info["models"][NAME]
    say(f"info: labels {model['labels']}, options {model.get('config')}")

    image = server.ask("POST", "/activelearning/first")["id"]
    before = {level: server.infer(image, level=level) for level in (2, 1)}
    for level, found in before.items():
        same_as_segment(found, bundle, studies / f"{image}.nii.gz", level)
    score = dice(before[2], references / image)
    say(f"infer {image}: L2 and L1 are voxel by voxel those of segment; Dice {score:.3f}")

    for number, count in enumerate((epochs, 2), 1):
        start = time.perf_counter()
        server.ask(
            "POST", f"/train/{NAME}?run_sync=true", {"max_epochs": count, "device": "cpu", "val_split": 0.25}
        )
        record = json.loads((bundle / "models" / "model.json").read_text())
        assert (bundle / "models" / str(number) / "model.pt").is_file()  # what was there before
        assert (bundle / "models" / f"checkpoint_epoch={count}.pt").is_file()
        say(
            f"train {count} epochs: {time.perf_counter() - start:.0f} s, "
            f"validation Dice {record['scores']['val_mean_dice']:.3f} in epoch {record['epoch']}, "
            f"trained on {record['data']}; the weights before are in models/{number}"
        )
        found = server.infer(image, level=2)
        same_as_segment(found, bundle, studies / f"{image}.nii.gz", 2)
        say(f"infer {image} with the new weights: as segment; Dice {dice(found, references / image):.3f}")

    server.wait_for_scoring()  # it begins by itself after a training
    server.ask("POST", f"/scoring/{NAME}?run_sync=true", {"simulation_size": 3, "device": "cpu"})
    stored = json.loads((studies / "datastore_v2.json").read_text())["objects"]
    scores = {name: entry["image"]["info"].get("epistemic_entropy") for name, entry in stored.items()}
    scores = {name: value for name, value in scores.items() if value is not None}
    assert len(scores) == UNLABELLED, scores
    assert np.isfinite(list(scores.values())).all(), scores
    say("scoring: " + ", ".join(f"{name} {value:.4f}" for name, value in sorted(scores.items())))
    say(f"active learning, random: {server.ask('POST', '/activelearning/random')['id']}")


class Server:
    """A server in a process of its own, which stops at the end of the block."""

    def __init__(self, environment: Path, app: Path, studies: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = app.parent / "server.log"
        settings = {"models": NAME, "epistemic_model": NAME, "zoo_source": "ngc", "sam2": "false"}
        command = ["monailabel", "start_server", "--app", app, "--studies", studies]
        command += ["--host", "127.0.0.1", "--port", port]
        command += [word for key, value in settings.items() for word in ("--conf", key, value)]
        self.command, self.environment = [str(word) for word in command], environment

    def __enter__(self) -> Server:
        """Start it, and return when it answers."""
        self.process = subprocess.Popen(
            self.command,
            env=variables(self.environment),
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        until = time.monotonic() + 180
        while True:
            try:
                self.ask("GET", "/info/")
            except urllib.error.URLError:
                if self.process.poll() is not None or time.monotonic() > until:
                    self.__exit__()
                    sys.exit(f"The server did not start: {self.log}")
                time.sleep(1)
            else:
                say(f"started: {' '.join(self.command[:2])} ... on {self.url}")
                return self

    def __exit__(self, *_: object) -> None:
        """Stop it and its workers."""
        os.killpg(self.process.pid, 15)
        self.process.wait(30)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON that the server answers."""
        data = None if body is None else json.dumps(body).encode()
        return json.loads(self._open(method, path, data, "application/json"))

    def infer(self, image: str, **options: Any) -> Path:
        """Return the path of the mask that the server answers."""
        form = urllib.parse.urlencode({"params": json.dumps({"device": "cpu", **options})}).encode()
        answer = self._open(
            "POST", f"/infer/{NAME}?image={image}&output=image", form, "application/x-www-form-urlencoded"
        )
        path = self.log.with_name("answer.nii.gz")
        path.write_bytes(answer)
        return path.rename(path.with_name(f"{image}_{time.time_ns()}.nii.gz"))

    def wait_for_scoring(self, seconds: float = 600) -> None:
        """Return when no scoring runs, of which the server says 404."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{self.url}/scoring/?check_if_running=true", timeout=60).close()
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return
                raise
            time.sleep(1)
        sys.exit(f"Scoring did not end within {seconds:.0f} s: {self.log}")

    def _open(self, method: str, path: str, data: bytes | None, kind: str) -> bytes:
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=3600) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            sys.exit(f"{method} {path}: {error} {error.read().decode()[:2000]}; see {self.log}")


def write_studies(work: Path) -> tuple[Path, Path]:
    """Write synthetic CTs, the first with labels; return their folder, and that of the labels of all."""
    phantoms, studies = work / "phantoms", work / "studies"
    write_phantoms(phantoms, "liver", LABELLED + UNLABELLED, seed=1)
    final = studies / "labels" / "final"
    final.mkdir(parents=True)
    for number, path in enumerate(sorted((phantoms / "imagesTr").iterdir())):
        shutil.copy(path, studies)
        if number < LABELLED:
            shutil.copy(phantoms / "labelsTr" / path.name, final)
    return studies, phantoms / "labelsTr"


def same_as_segment(found: Path, bundle: Path, scan: Path, level: int) -> None:
    """Raise unless a mask is, voxel by voxel, what ``monai-unetpp segment`` writes."""
    mask = segment(scan, found.with_suffix("").with_suffix(""), bundle, "--level", str(level))
    theirs, ours = nib.load(found), nib.load(mask)
    assert np.allclose(theirs.affine, ours.affine, atol=1e-4)
    different = int((np.asarray(theirs.dataobj) != np.asarray(ours.dataobj)).sum())
    assert different == 0, f"{different} voxels of {found} differ from {mask}"


def dice(mask: Path, reference: Path) -> float:
    """Return the Dice of the liver."""
    one, other = (np.asarray(nib.load(path).dataobj) == 1 for path in (mask, f"{reference}.nii.gz"))
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


if __name__ == "__main__":
    main()
