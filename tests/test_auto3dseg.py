# SPDX-License-Identifier: Apache-2.0
"""MONAI's Auto3DSeg with UNet++: its runner from a data list to the masks of its ensemble, on two folds."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.apps.auto3dseg import AutoRunner, BundleGen, import_bundle_algo_history
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Compose,
    Invertd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)

from bundles import TINY_PLAN
from monai_unetpp import UNetPlusPlus, prune
from monai_unetpp.__main__ import main
from monai_unetpp.auto3dseg import split_listed, templates_folder
from monai_unetpp.weights import read_record

pytest.importorskip("yaml", reason='pip install -e ".[auto3dseg]"')
pytest.importorskip("matplotlib", reason='pip install -e ".[auto3dseg]"')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # those of Auto3DSeg
    pytest.mark.usefixtures("_path_as_before"),
]

SETTINGS = {**TINY_PLAN, "pixdim": [5.0, 5.0, 5.0]}  # not that of the files


def listed(data, folder, **more):
    """A data list of two folds, and the input of Auto3DSeg."""
    cases = json.loads((data / "dataset.json").read_text())["training"]
    training = [{**case, "fold": n % 2} for n, case in enumerate(cases)]
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": training, "testing": [{"image": cases[2]["image"]}]}))
    own = {"hours": 0.02, "device": "cpu", "set": SETTINGS}
    given = {"modality": "CT", "dataroot": str(data), "datalist": str(path), "class_names": ["ball", "pip"]}
    return {**given, "unetplusplus": own, **more}


def in_this_process(command, env, check):
    """What ``subprocess.run`` does with a command of this package; a process takes seconds to start."""
    assert command[1:3] == ["-m", "monai_unetpp"]
    assert check
    assert env
    main(command[3:])
    return subprocess.CompletedProcess(command, 0)


@pytest.fixture(scope="module")
def work(balls, tmp_path_factory):
    """What the runner leaves after two folds and their ensemble."""
    folder = tmp_path_factory.mktemp("auto3dseg")
    work = folder / "work"
    work.mkdir()
    (work / "datastats.yaml").write_text("{}")  # that of MONAI is not used
    with pytest.MonkeyPatch.context() as patch:
        own = SimpleNamespace(run=in_this_process, CompletedProcess=subprocess.CompletedProcess)
        patch.setattr("monai_unetpp.auto3dseg.algo.subprocess", own)
        runner = AutoRunner(
            work_dir=str(work),
            input=listed(balls, folder),
            algos="unetplusplus",
            analyze=False,
            templates_path_or_url=str(templates_folder()),
        )
        runner.set_training_params({"num_epochs": 1})
        runner.set_prediction_params({"precision": "float32"})
        runner.run()
    return work


@pytest.fixture(scope="module")
def image(work, balls):
    """The image that the data list has for testing; its axes are permuted, and it is resampled."""
    [listed] = json.loads((work / "datalist.json").read_text())["testing"]
    return balls / listed["image"]


def reference(folder, image):
    """The probabilities of a fold on the grid of the file, by MONAI's transforms alone."""
    weights = folder / "bundle" / "models" / "model.pt"
    record = read_record(weights)
    net = UNetPlusPlus(**record.network)
    net.load_state_dict(torch.load(weights, weights_only=True))
    net = prune(net, record.level).eval()
    low, high = record.hu_range
    before = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=record.pixdim, dtype=None),
            ScaleIntensityRanged("image", low, high, 0, 1, clip=True),
        ]
    )
    data = before({"image": str(image)})
    windows = SlidingWindowInferer(record.roi_size, 4, 0.5, "gaussian")
    with torch.no_grad():
        found = torch.softmax(windows(data["image"].as_tensor()[None], net), dim=1)
    back = Invertd("pred", before, orig_keys="image", nearest_interp=False)
    return back({**data, "pred": MetaTensor(found[0])})["pred"].as_tensor()


def test_ensemble_is_the_mean_of_the_folds(work, image):
    folds = [reference(work / f"unetplusplus_{fold}", image) for fold in range(2)]
    mean = torch.stack(folds).mean(dim=0)
    [path] = (work / "ensemble_output").rglob("*.nii.gz")
    mask, file = nib.load(path), nib.load(image)
    assert mask.shape == file.shape
    assert np.allclose(mask.affine, file.affine, atol=1e-4)
    top = mean.topk(2, dim=0).values
    sure = (top[0] - top[1] > 1e-4).numpy()
    assert sure.mean() > 0.9
    different = np.asarray(mask.dataobj)[sure] != mean.argmax(dim=0).numpy()[sure]
    assert different.mean() == 0


def test_predictions_are_probabilities_of_every_class_on_the_grid_of_the_file(work, image):
    for each in import_bundle_algo_history(str(work)):
        [found] = each["algo_instance"].predict([{"image": str(image)}], {"precision": "float32"})
        assert tuple(found.shape) == (3, *nib.load(image).shape)
        torch.testing.assert_close(found.as_tensor().sum(0), torch.ones(found.shape[1:]))
        wanted = reference(work / str(each["identifier"]), image)
        torch.testing.assert_close(found.as_tensor(), wanted, atol=1e-4, rtol=0)


def test_folds_are_those_of_the_data_list_and_share_a_plan(work):
    bundles = [work / f"unetplusplus_{fold}" / "bundle" for fold in range(2)]
    first, second = (json.loads((bundle / "train.json").read_text()) for bundle in bundles)
    differ = {key for key in first if first[key] != second[key]}
    assert differ == {"bundle_root", "dataset_dir", "held_out", "split"}
    assert not {*first["held_out"]} & {*second["held_out"]}
    cases = json.loads((work / "unetplusplus_1" / "configs" / "dataset.json").read_text())["dataset"].values()
    held_out = [case["images"][0] for n, case in enumerate(cases) if n % 2 == 1]
    assert second["held_out"] == held_out
    record = torch.load(bundles[1] / "models" / "checkpoint_epoch=1.pt", weights_only=True)["split"]
    assert {*record["held_out"]} == {"/".join(Path(path).parts[-2:]) for path in held_out}


def test_score_is_that_of_the_held_out_cases(work):
    for each in import_bundle_algo_history(str(work)):
        weights = work / str(each["identifier"]) / "bundle" / "models" / "model.pt"
        assert each["best_metric"] == read_record(weights).scores["val_mean_dice"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_names": None}, "input must have class_names, names without the background"),
        ({"class_names": ["ball", "pip"], "sigmoid": True}, "no sigmoid for unetplusplus"),
        ({"dataroot": "nowhere"}, "no case that can be used: 8 problems, first .*nowhere.*does not exist"),
        ({"unetplusplus": {"hour": 1}}, "keys among hours, memory, device, set, skip_bad, got hour"),
    ],
    ids=["names", "sigmoid", "files", "key"],
)
def test_an_input_that_does_not_fit_is_refused(changed, message, balls, tmp_path):
    given = listed(balls, tmp_path, **changed)
    (tmp_path / "input.json").write_text(json.dumps(given))
    made = BundleGen(
        str(tmp_path),
        "unetplusplus",
        str(templates_folder()),
        data_stats_filename="none",
        data_src_cfg_name=str(tmp_path / "input.json"),
    )
    with pytest.raises(ValueError, match=message):
        made.generate(str(tmp_path), num_fold=2)


def test_untrained_folds_have_no_score(tmp_path):
    from monai_unetpp.auto3dseg import UnetplusplusAlgo

    algo = UnetplusplusAlgo()
    algo.output_path = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="was not trained and scored to its end"):
        algo.get_score()


def test_a_listed_image_that_is_of_no_case_is_refused():
    cases = [{"image": f"{name}.nii.gz"} for name in "abc"]
    assert split_listed(cases, ["b.nii.gz"]) == ([cases[0], cases[2]], [cases[1]])
    for held_out in (["d.nii.gz"], [], ["a.nii.gz", "b.nii.gz", "c.nii.gz"]):
        with pytest.raises(ValueError, match="held_out must name images of the 3 cases"):
            split_listed(cases, held_out)


def test_command_prints_the_folder_of_templates(capsys):
    main(["auto3dseg", "path"])
    folder = capsys.readouterr().out.strip()
    assert folder == str(templates_folder())
    assert (templates_folder() / "unetplusplus" / "scripts" / "algo.py").is_file()
