# SPDX-License-Identifier: Apache-2.0
"""What is the lung nodule bundle's own: how it samples, that it does not learn the middle, what it writes."""

import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from dicom import write_series

from bundles import TINY_TRAINING, affine, run, workflow, write_cases
from monai_unetpp import DeepSupervisionDiceLoss, UNetPlusPlus
from monai_unetpp.data.decathlon import Case

NODULE, LUNG, WALL = 30, -850, 40  # HU
LABELS = {"0": "background", "1": "nodule"}
CUBE = (51, 51, 51)

pytestmark = pytest.mark.slow


def chest(name, centres, radius=5, shape=CUBE, seed=0, rod=4):
    """Lung with balls, a rod as dense as they are, and noise."""
    rng = np.random.default_rng(seed)
    grid = np.moveaxis(np.indices(shape), 0, -1)
    label = np.zeros(shape, np.uint8)
    for centre in centres:
        label[np.linalg.norm(grid - np.array(centre), axis=-1) < radius] = 1
    image = np.where(label > 0, NODULE, LUNG) + rng.normal(0, 20, shape)
    image[:, rod : rod + 4, rod : rod + 4] = WALL
    return Case(name, image.round().astype(np.int16), label, affine("RAS", (1, 1, 1)))


@pytest.fixture(scope="module")
def cubes(tmp_path_factory):
    """Nodules in the middle of their cubes, as those of LIDC are cut out."""
    folder = tmp_path_factory.mktemp("cubes") / "data"
    cases = [chest(f"cube_{k}", [(25, 25, 25)], radius=3 + k % 4, seed=k) for k in range(8)]
    return write_cases(folder, cases, LABELS)


def sampler(root, data, **override):
    """The preprocessing of training, and the cases it is for."""
    flow = workflow("lung_nodule", "train", root, dataset_dir=str(data), num_workers=0, **override)
    flow.initialize()
    transform = flow.parser.get_parsed_content("train#preprocessing")
    return transform.set_random_state(0), flow.parser.get_parsed_content("split")[0]


@pytest.mark.parametrize("overlays", ["train", "train lidc"])
@pytest.mark.parametrize("disabled", [None, "flip_1"])
def test_random_transforms_have_names_that_overlays_and_the_command_line_use(tmp_path, overlays, disabled):
    more = {f"train#random_transforms#{disabled}#_disabled_": True} if disabled else {}
    settings = {"train#random_transforms#flip_0#prob": 0.25, "dataset_dir": "unused", **more}
    parser = workflow("lung_nodule", overlays, tmp_path, **settings).parser
    named = parser.get_parsed_content("train#random_transforms")
    assert list(named)[:3] == ["pad", "crop", "shift"]
    assert type(named["pad"]).__name__ == {"train": "SpatialPadd", "train lidc": "BorderPadd"}[overlays]
    assert named["crop"].cropper.pos_ratio == {"train": 0.5, "train lidc": 0.75}[overlays]
    assert named["flip_0"].prob == 0.25
    assert ("flip_1" in named) == (disabled is None)
    assert "squeeze" not in named  # for slices only
    applied = [type(t) for t in parser.get_parsed_content("train#preprocessing").transforms]
    first = len(parser["preprocessing_transforms"])
    assert applied[first : first + len(named)] == [type(t) for t in named.values()]


def test_nodule_of_a_cube_lies_anywhere_in_the_patches(cubes, tmp_path):
    transform, cases = sampler(tmp_path, cubes)
    places = []
    for _ in range(12):
        for case in cases:
            for patch in transform(case):
                assert patch["image"].shape == patch["label"].shape == (1, 40, 40, 40)
                places += [np.argwhere(patch["label"][0].numpy() > 0).mean(0)] if patch["label"].any() else []
    places = np.array(places)
    low, high = np.percentile(places, [5, 95], axis=0)
    assert (low < 15).all()
    assert (high > 24).all()
    assert (np.abs(places - 19.5).max(axis=1) < 2).mean() < 0.1  # hardly ever in the middle


def test_half_of_the_patches_have_a_nodule_and_others_what_looks_like_one(tmp_path):
    wide = [chest(name, [(150, 40, 40)], shape=(160, 60, 60), rod=20) for name in ("a", "b")]
    transform, cases = sampler(tmp_path, write_cases(tmp_path / "data", wide, LABELS), val_fraction=0.5)
    patches = [patch for _ in range(25) for patch in transform(cases[0])]
    with_nodule = np.mean([bool(patch["label"].any()) for patch in patches])
    assert 0.35 < with_nodule < 0.75
    dense = [float((patch["image"] > 0.5).float().sum()) for patch in patches if not patch["label"].any()]
    assert np.mean(np.array(dense) > 0) > 0.9  # though the rod is a hundredth of the volume


@pytest.mark.filterwarnings("ignore:Num foregrounds 0:UserWarning")
def test_case_without_a_nodule_is_trained_on(tmp_path):
    data = write_cases(tmp_path / "data", [chest(f"c{k}", [], seed=k) for k in range(2)], LABELS)
    transform, cases = sampler(tmp_path, data, val_fraction=0.5)
    patches = transform(cases[0])
    image, label = (torch.stack([patch[key].as_tensor() for patch in patches]) for key in ("image", "label"))
    net = UNetPlusPlus(3, 1, 2, channels=(4, 8), strides=2)
    loss = DeepSupervisionDiceLoss(include_background=False, batch=True)(net(image), label)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.fixture(scope="module")
def trained(cubes, tmp_path_factory):
    """A bundle trained for a short time on nodules that lie in the middle of their cubes."""
    root = tmp_path_factory.mktemp("lung")
    settings = {
        **TINY_TRAINING,
        **{"pixdim": [1.0, 1.0, 1.0], "hu_range": [-1000, 400], "roi_size": [24, 24, 24]},
        **{
            "channels": [8, 16],
            "max_epochs": 30,
            "val_interval": 30,
            "learning_rate": 0.01,
            "patches_per_case": 4,
        },
    }
    run("lung_nodule", "train", root, dataset_dir=str(cubes), **settings)
    return root, {key: settings[key] for key in ("pixdim", "hu_range", "roi_size", "channels")}


def test_network_does_not_learn_the_middle(trained):
    root, settings = trained
    net = UNetPlusPlus(3, 1, 2, channels=settings["channels"], strides=2).eval()
    net.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True))
    scores = {}
    for name, centre in {"middle": (25, 25, 25), "corner": (11, 38, 39), "nowhere": None}.items():
        case = chest(name, [centre] if centre else [], seed=99)
        x = torch.tensor((case.image + 1000) / 1400, dtype=torch.float32).clip(0, 1)[None, None]
        with torch.no_grad():
            found = net(x).argmax(1)[0].numpy() > 0
        label = case.label > 0
        middle = found[20:31, 20:31, 20:31]
        scores[name] = 2 * (found & label).sum() / (found.sum() + label.sum()) if centre else middle.mean()
    assert scores["middle"] > 0.5
    assert scores["corner"] > scores["middle"] - 0.1
    assert scores["nowhere"] == 0


def test_evaluation_writes_every_nodule_and_a_picture(trained, cubes, tmp_path):
    root, settings = trained
    run(
        "lung_nodule",
        "train evaluate",
        tmp_path,
        dataset_dir=str(cubes),
        ckpt_path=str(root / "models" / "model.pt"),
        out_channels=2,
        **settings,
    )
    rows = list(csv.DictReader((tmp_path / "eval" / "lesions.csv").read_text().splitlines()))
    assert len(rows) == 2  # a quarter of eight cubes, one nodule in each
    by_case = list(csv.DictReader((tmp_path / "eval" / "val_mean_dice_raw.csv").read_text().splitlines()))
    dice = {row["filename"]: float(row["nodule"]) for row in by_case}
    for row in rows:
        assert row["found"] == "True"
        assert float(row["dice"]) >= dice[row["case"]] - 1e-3  # without the false positives elsewhere
        assert row["size"] in ("< 6 mm", "6-10 mm", "> 10 mm")
    curve = list(csv.DictReader((tmp_path / "eval" / "froc.csv").read_text().splitlines()))
    assert [float(row["false positives per case"]) for row in curve[:3]] == [0.125, 0.25, 0.5]
    assert float(curve[-2]["sensitivity"]) == 1
    assert (tmp_path / "eval" / "cases.png").read_bytes()[:4] == b"\x89PNG"


def test_volumes_of_every_kind_train_and_are_scored(tmp_path):
    """DICOM folders and .mhd files in a dataset.json, with labels as NIfTI."""
    data = write_cases(tmp_path / "data", [chest(f"c{k}", [(25, 25, 25)], seed=k) for k in range(4)], LABELS)
    index = json.loads((data / "dataset.json").read_text())
    for n, case in enumerate(index["training"]):
        nifti = nib.load(data / case["image"])
        array = np.asarray(nifti.dataobj)[::-1, ::-1]  # from RAS to the LPS that the others are stored in
        label = nib.load(data / case["label"])
        turned = nib.Nifti1Image(np.asarray(label.dataobj)[::-1, ::-1], np.diag([-1.0, -1, 1, 1]))
        nib.save(turned, data / case["label"])
        case["image"] = f"./{n}" if n % 2 else f"./{n}.mhd"
        if n % 2:
            planes = ((float(z), array[:, :, z]) for z in range(array.shape[2]))
            write_series(data / str(n), planes, uid=f"1.2.{n}", origin=(0.0, 0.0), pixel=1.0)
        else:
            sitk.WriteImage(sitk.GetImageFromArray(array.transpose()), str(data / f"{n}.mhd"))
    (data / "dataset.json").write_text(json.dumps(index))
    settings = {
        **TINY_TRAINING,
        **{"pixdim": [1.0, 1.0, 1.0], "hu_range": [-1000, 400], "roi_size": [16, 16, 16], "max_epochs": 1},
        **{"out_channels": 2, "dataset_dir": str(data)},
    }
    run("lung_nodule", "train", tmp_path, **settings)
    run("lung_nodule", "train evaluate", tmp_path, **settings, eval_cases="$@dataset.cases")
    rows = list(csv.DictReader((tmp_path / "eval" / "val_mean_dice_raw.csv").read_text().splitlines()))
    assert len(rows) == 4
    assert (tmp_path / "eval" / "cases.png").is_file()
