# SPDX-License-Identifier: Apache-2.0
"""nnU-Net v2: its own commands with our trainer, the traps of that, levels, and a level as a bundle."""

import json
import multiprocessing
import multiprocessing.pool
import re
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run as run_bundle
from processes import apart
from torch.nn.parallel import DistributedDataParallel

import monai_unetpp
from monai_unetpp.__main__ import main
from monai_unetpp.levels import read_levels, select_level
from monai_unetpp.network import unwrap
from monai_unetpp.nnunet.architecture import LEVEL

pytest.importorskip("nnunetv2", reason='pip install -e ".[nnunet]"')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # those of nnU-Net and of what it imports
]

FOLDER = Path(monai_unetpp.__file__).parent / "nnunet" / "trainer"
NAME, CONFIGURATION, TRAINER = "Dataset801_Balls", "3d_fullres", "nnUNetTrainerUNetPlusPlus"
FOUND = ["-tr", TRAINER, "-c", CONFIGURATION]
OPERATORS = """
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
FEATURES = (4, 6, 8, 10, 12)


def write_dataset(folder, cases=8):
    """Balls with a core, in the layout of nnU-Net; spacing differs by axis and case, and two planes are 0."""
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    for n in range(cases):
        size = np.array([20, 18, 16]) + rng.integers(0, 4, 3)
        places = np.stack(np.indices(size), -1)
        radius = np.linalg.norm(places - size / 2 - rng.uniform(-2, 2, 3), axis=-1)
        label = (radius < 6).astype(np.uint8) + (radius < 3)
        image = (100 * label + rng.normal(200, 20, size)).astype(np.float32)
        image[:, :, :2] = 0
        affine = np.diag([-1.0, -1.1, 1.3 if n % 2 else 1.4, 1])
        nib.save(nib.Nifti1Image(image, affine), folder / "imagesTr" / f"case_{n}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / f"case_{n}.nii.gz")
    shutil.copy(folder / "imagesTr" / "case_1_0000.nii.gz", folder / "imagesTs" / "case_9_0000.nii.gz")
    labels = {"background": 0, "ball": 1, "core": 2}
    described = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": cases}
    (folder / "dataset.json").write_text(json.dumps({**described, "file_ending": ".nii.gz"}))


def run_entry(entry, *words):
    """Run a command of nnU-Net in this process, as its console script does."""
    module, name = entry.split(":")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, words)])
        patch.setattr(multiprocessing, "cpu_count", lambda: 1)  # the threads that it sets on a CPU
        getattr(__import__(module, fromlist=[name]), name)()


def train(*words):
    run_entry("nnunetv2.run.run_training:run_training_entry", 801, CONFIGURATION, 0, "-tr", TRAINER, *words)


def predict(images, out, *words):
    entry = "nnunetv2.inference.predict_from_raw_data:predict_entry_point"
    run_entry(entry, "-d", 801, "-i", images, "-o", out, "-f", 0, *FOUND, "-device", "cpu", *words)


def operators():
    """What defines the operators of torchvision that torch lacks, while it is kept; None if there are all."""
    try:
        import torchvision  # noqa: F401  nnU-Net's search for trainers imports it
    except RuntimeError:  # the CPU build of torch beside that for CUDA of torchvision, from PyPI
        return exec(OPERATORS, found := {}) or found["library"]


@pytest.fixture(scope="module", autouse=True)
def nnunet(tmp_path_factory):
    """Folders and variables of nnU-Net, and operators of torchvision where its build is not that of torch."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        for name, value in {"n_proc_DA": "1", "def_n_proc": "1", "extTrainer": str(FOLDER)}.items():
            patch.setenv(f"nnUNet_{name}", value)
        patch.setenv("nnUNet_unetpp_iterations", "1")
        patch.setenv("nnUNet_unetpp_epochs", "1")
        patch.delenv(LEVEL, raising=False)
        if (kept := operators()) is not None:
            (root / "site").mkdir()
            (root / "site" / "sitecustomize.py").write_text(OPERATORS)
            patch.setenv("PYTHONPATH", str(root / "site"))
        yield root
        del kept


@pytest.fixture(scope="module")
def threads():
    """Threads in place of nnU-Net's processes, each of which takes seconds to import torch."""
    real = multiprocessing.get_context

    class Context:
        Pool = staticmethod(multiprocessing.pool.ThreadPool)

        def __getattr__(self, name):
            return getattr(real("spawn"), name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda *_: Context())
        yield


@pytest.fixture(scope="module")
def planned(nnunet, threads):  # noqa: ARG001  for its whole file
    """The data set, planned and preprocessed by nnU-Net; its network is made narrow afterwards."""
    write_dataset(nnunet / "raw" / NAME)
    entry = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints:plan_and_preprocess_entry"
    run_entry(entry, "-d", 801, "-c", CONFIGURATION, "-npfp", 1, "-np", 1)
    path = nnunet / "preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    for configuration in plans["configurations"].values():
        kwargs = configuration["architecture"]["arch_kwargs"]
        kwargs["features_per_stage"] = list(FEATURES[: kwargs["n_stages"]])
    path.write_text(json.dumps(plans))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "0")  # no process for patches; planning refuses it
        yield path


@pytest.fixture(scope="module")
def trained(nnunet, planned):
    """The folder of fold 0 after one iteration by nnU-Net's own command."""
    train("-device", "cpu", "--npz")
    return nnunet / "results" / planned.parent.name / f"{TRAINER}__nnUNetPlans__{CONFIGURATION}" / "fold_0"


@pytest.fixture(scope="module")
def predicted(nnunet, trained):
    """The mask of the test case, by nnU-Net's own command."""
    predict(
        nnunet / "raw" / NAME / "imagesTs", nnunet / "masks", "-npp", 1, "-nps", 1, "--save_probabilities"
    )
    assert trained.is_dir()
    return nnunet / "masks" / "case_9.nii.gz"


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def trainer(planned):
    """Our trainer as nnU-Net makes it, initialised."""
    return initialised(planned.parent.name)


def initialised(name):
    from nnunetv2.run.run_training import get_trainer_from_args

    made = get_trainer_from_args(name, CONFIGURATION, 0, TRAINER, device=torch.device("cpu"))
    made.initialize()
    return made


def batch(trainer):
    size = trainer.configuration_manager.patch_size
    heads = trainer._get_deep_supervision_scales()
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, 1, *size), generator=generator)
    return {"data": torch.randn(2, 1, *size, generator=generator), "target": [target.clone() for _ in heads]}


# Their commands


def test_folder_holds_the_trainer_alone(capsys):
    main(["nnunet", "path"])
    assert Path(capsys.readouterr().out.strip()) == FOLDER
    assert sorted(path.name for path in FOLDER.glob("*.py")) == ["__init__.py", "unetplusplus_trainer.py"]


def test_training_by_their_command_trains_and_validates(trained):
    log = next(trained.glob("training_log_*.txt")).read_text()
    assert "UNet++ with levels L1..L2, all of which are trained; L2 predicts." in log
    assert "Epoch 0" in log
    assert "Epoch 1" not in log
    assert (trained / "checkpoint_final.pth").is_file()
    assert len(list((trained / "validation").glob("*.nii.gz"))) == 2


def test_prediction_by_their_command_at_another_level(nnunet, predicted, monkeypatch):
    monkeypatch.setenv(LEVEL, "1")
    out = nnunet / "masks_1"
    predict(nnunet / "raw" / NAME / "imagesTs", out, "-npp", 1, "-nps", 1, "--save_probabilities")
    deepest, first = (np.load(folder / "case_9.npz")["probabilities"] for folder in (predicted.parent, out))
    assert deepest.shape == first.shape == (3, *voxels(predicted).T.shape)
    assert np.abs(deepest - first).max() > 0.05


def test_training_resumes_and_validates_again(trained, monkeypatch, tmp_path):
    shutil.copytree(trained, tmp_path / "before")
    monkeypatch.setenv("nnUNet_unetpp_epochs", "2")
    try:
        train("-device", "cpu", "--c")
        log = max(trained.glob("training_log_*.txt")).read_text()
        assert "Epoch 1" in log
        assert "Epoch 0" not in log
        shutil.rmtree(trained / "validation")
        train("-device", "cpu", "--val")
        assert (trained / "validation" / "summary.json").is_file()
    finally:
        shutil.rmtree(trained)
        shutil.copytree(tmp_path / "before", trained)


@pytest.mark.usefixtures("trained")
def test_best_configuration_is_found_by_their_command(capsys):
    entry = "nnunetv2.evaluation.find_best_configuration:find_best_configuration_entry_point"
    run_entry(entry, 801, "-c", CONFIGURATION, "-tr", TRAINER, "-f", 0, "-np", 1, "--disable_ensembling")
    assert f"{TRAINER}__nnUNetPlans__{CONFIGURATION}" in capsys.readouterr().out


@pytest.mark.usefixtures("planned")
def test_runner_of_monai_trains_it(nnunet, monkeypatch):
    """MONAI's runner has no way to say ``-device cpu``: the test adds it to the runner's command."""
    from monai.apps.nnunet import nnunetv2_runner

    made = []
    monkeypatch.setattr(nnunetv2_runner, "run_cmd", lambda command, **_: made.append(command))
    folders = {f"nnunet_{name}": str(nnunet / name) for name in ("raw", "preprocessed", "results")}
    runner = nnunetv2_runner.nnUNetV2Runner(
        {**folders, "dataset_name_or_id": "801"}, trainer_class_name=TRAINER, work_dir=str(nnunet)
    )
    runner.train_single_model(CONFIGURATION, 1)
    [[command, *words]] = made
    assert command == "nnUNetv2_train"
    run_entry("nnunetv2.run.run_training:run_training_entry", *words, "-device", "cpu")
    folder = nnunet / "results" / NAME / f"{TRAINER}__nnUNetPlans__{CONFIGURATION}" / "fold_1"
    assert json.loads((folder / "validation" / "summary.json").read_text())["metric_per_case"]


# The traps


def test_every_weight_is_trained_that_of_the_first_head_as_well(trainer):
    assert trainer.loss.weight_factors == (0.5, 0.5)
    trainer.network.train()
    loss = trainer.train_step(batch(trainer))["loss"]
    assert np.isfinite(loss)
    still = [name for name, p in trainer.network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in still if not name.endswith("conv.bias")] == []  # a norm takes biases away
    assert "net.heads.0.weight" not in still


def test_targets_have_the_size_of_the_input_for_every_head(trainer):
    assert trainer._get_deep_supervision_scales() == [[1.0, 1.0, 1.0]] * 2
    heads = trainer.network(batch(trainer)["data"])
    assert [head.shape[2:] for head in heads] == [tuple(trainer.configuration_manager.patch_size)] * 2


def test_validation_within_training_wants_a_list_in_evaluation(trainer):
    trainer.network.eval()
    with torch.no_grad():
        found = trainer.validation_step(batch(trainer))
    assert np.isfinite(found["loss"])
    assert len(found["tp_hard"]) == 2


def wrapped_as(kind, network, folder):
    """The network as nnU-Net wraps it on a GPU, and whether it believes to be in DDP."""
    if kind != "ddp":
        network = torch.compile(network, backend="aot_eager")  # forward and backward as graphs
    if kind != "compile":
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=0, world_size=1)
        network = DistributedDataParallel(network)
    return network, kind != "compile"


def switch_works_behind(kinds, name, folder):
    kept = operators()
    trainers = {kind: initialised(name) for kind in kinds}  # in DDP, they would want a GPU
    for kind, trainer in trainers.items():
        sys.stderr.write(f"{kind}\n")  # of a failure, what it is in
        trainer.network, trainer.is_ddp = wrapped_as(kind, trainer.network, folder)
        x = batch(trainer)["data"]
        plain = unwrap(trainer.network)
        for training in (True, False, True):
            trainer.network.train(training)
            trainer.set_deep_supervision_enabled(True)
            heads = trainer.network(x)
            assert isinstance(heads, list)
            trainer.set_deep_supervision_enabled(False)
            one = trainer.network(x)
            torch.testing.assert_close(one, heads[0], rtol=0, atol=1e-5)  # compiled, sums differ in order
        assert plain.decoder.deep_supervision is False
        trainer.set_deep_supervision_enabled(True)
        for _ in range(2):  # DDP finds weights without a gradient in the second step
            assert np.isfinite(trainer.train_step(batch(trainer))["loss"])
    del kept


def test_switch_works_behind_the_compiler_and_ddp_and_both(planned, tmp_path):
    apart(switch_works_behind, ["compile", "ddp", "compile in ddp"], planned.parent.name, str(tmp_path))


def test_prediction_loads_the_same_weights_with_the_switch_off(trainer):
    managers = (trainer.plans_manager, trainer.configuration_manager)
    network = type(trainer).build_network_architecture(*managers, 1, 3, enable_deep_supervision=False)
    network.load_state_dict(trainer.network.state_dict())
    x = batch(trainer)["data"]
    network.eval()
    trainer.network.eval()
    assert torch.equal(network(x), trainer.network(x)[0])


def test_weights_are_initialised_as_nnunet_does(trainer):
    weight = trainer.network.net.nodes["x_0_1"].convs.conv_1.conv.weight
    fan_in = weight[0].numel()
    assert float(weight.detach().std()) == pytest.approx((2 / (1 + 0.01**2) / fan_in) ** 0.5, rel=0.1)
    assert not trainer.network.net.nodes["x_0_1"].convs.conv_1.conv.bias.any()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (LEVEL, "3", r"nnUNet_unetpp_level must be a level of the network, 1..2, got '3'"),
        (LEVEL, "deep", r"1..2, got 'deep'"),
        ("nnUNet_unetpp_epochs", "0", r"nnUNet_unetpp_epochs must be a whole number above 0"),
    ],
    ids=["too deep", "no number", "no epoch"],
)
@pytest.mark.usefixtures("planned")
def test_variables_are_checked(name, value, message, monkeypatch):
    from nnunetv2.run.run_training import get_trainer_from_args

    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        get_trainer_from_args("801", CONFIGURATION, 0, TRAINER, device=torch.device("cpu")).initialize()


# Levels


def test_levels_have_the_dice_of_their_own_validation(trained, capsys):
    main(["nnunet", "levels", "801", CONFIGURATION, "0", "--device", "cpu"])
    said = capsys.readouterr().out
    scores, theirs = (
        read_levels(trained / "levels"),
        json.loads((trained / "validation/summary.json").read_text()),
    )
    assert [score.level for score in scores] == [1, 2]
    assert scores[1].dice == pytest.approx(theirs["foreground_mean"]["Dice"], abs=1e-4)
    by_class = [theirs["mean"][label]["Dice"] for label in ("1", "2")]
    assert list(scores[1].dice_per_class.values()) == pytest.approx(by_class, abs=1e-4)
    assert scores[0].dice != scores[1].dice
    assert {path.name for path in (trained / "levels").iterdir()} == {
        *("levels.csv", "levels.md", "levels.png", "levels_cases.csv")
    }
    level = select_level(scores, 0.01)
    assert f"nnUNet_unetpp_level={level} nnUNetv2_predict" in said
    with pytest.raises(SystemExit):
        main(["nnunet", "levels", "801", CONFIGURATION, "0", "--device", "cpu"])
    assert "levels.csv exists, and is not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["801", CONFIGURATION, "4"], "there is no .*fold_4/checkpoint_final.pth: nnUNetv2_train 801"),
        (["999", CONFIGURATION, "0"], "Could not find a dataset with the ID 999"),
        (["801", CONFIGURATION, "0", "-tr", "nnUNetTrainer"], "nnUNetTrainer__nnUNetPlans__3d_fullres"),
    ],
    ids=["fold", "data set", "trainer"],
)
@pytest.mark.usefixtures("trained")
def test_fold_that_was_not_trained_is_named(words, message, capsys):
    with pytest.raises(SystemExit):
        main(["nnunet", "levels", *words])
    assert re.search(message, capsys.readouterr().err)


# A level as a bundle


@pytest.mark.usefixtures("trained")
def test_bundle_has_the_voxels_of_their_prediction(predicted, nnunet, tmp_path, capsys):
    main(["nnunet", "export", "801", CONFIGURATION, "0", "--level", "2", "--out", str(tmp_path / "balls")])
    images = str(nnunet / "raw" / NAME / "imagesTs")
    main(["segment", "-i", images, "-o", str(tmp_path / "masks"), "--bundle", str(tmp_path / "balls")])
    assert "1 segmented" in capsys.readouterr().out
    ours, theirs = nib.load(tmp_path / "masks" / "case_9_0000_seg.nii.gz"), nib.load(predicted)
    assert np.mean(voxels(ours.get_filename()) != voxels(predicted)) < 0.001  # ties within half precision
    assert np.allclose(ours.affine, theirs.affine)


def test_bundle_of_the_chosen_level_runs_by_monai(trained, nnunet, tmp_path):
    table = trained / "levels"
    if not table.is_dir():
        main(["nnunet", "levels", "801", CONFIGURATION, "0", "--device", "cpu"])
    main(
        ["nnunet", "export", "801", CONFIGURATION, "0", "--tolerance", "1", "--out", str(tmp_path / "balls")]
    )
    record = json.loads((tmp_path / "balls" / "models" / "model.json").read_text())
    assert len(record["network"]["strides"]) == 1  # every level is within 1 Dice of the best: L1
    settings = {"input": str(nnunet / "raw" / NAME / "imagesTs"), "output_dir": str(tmp_path / "masks")}
    run_bundle(
        config_file=str(tmp_path / "balls" / "inference.json"),
        bundle_root=str(tmp_path / "balls"),
        **settings,
    )
    [mask] = (tmp_path / "masks").rglob("*.nii.gz")
    main(
        [
            "segment",
            "-i",
            settings["input"],
            "-o",
            str(tmp_path / "again"),
            "--bundle",
            str(tmp_path / "balls"),
        ]
    )
    assert np.array_equal(voxels(mask), voxels(next((tmp_path / "again").glob("*.nii.gz"))))
