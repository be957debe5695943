# SPDX-License-Identifier: Apache-2.0
"""Plans of nnU-Net v2, as our network and in the memory of theirs; and what an exported level computes."""

import copy
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from monai_unetpp import UNetPlusPlus
from monai_unetpp.__main__ import main
from monai_unetpp.nnunet.architecture import build_network, differences, network_arguments
from monai_unetpp.nnunet.models import Fold, set_level
from monai_unetpp.nnunet.plans import add_configuration
from monai_unetpp.nnunet.preprocessing import PlansPreprocessd
from monai_unetpp.nnunet.windows import PlansWindows
from monai_unetpp.planning.budget import total_memory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # those of nnU-Net and of what it imports
]

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
CT = {"mean": 90.0, "std": 60.0, "percentile_00_5": 20.0, "percentile_99_5": 180.0}
RESAMPLING = {"order_z": 0, "force_separate_z": None, "is_seg": False}


def architecture(strides, kernels, features=(4, 6, 8, 10, 12, 14), **changes):
    dims, stages = len(strides[0]), len(strides)
    kwargs = {
        "n_stages": stages,
        "features_per_stage": list(features[:stages]),
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **changes,
    }
    name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    imported = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    return {"network_class_name": name, "arch_kwargs": kwargs, "_kw_requires_import": imported}


def make_plans(
    spacing=(1.3, 1.1, 1.0),
    patch=(8, 16, 12),
    forward=(0, 1, 2),
    schemes=("ZScoreNormalization",),
    masked=(False,),
    strides=STRIDES,
    kernels=KERNELS,
):
    """Plans as nnU-Net writes them, with one configuration."""
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": [float(n) for n in patch],
        "spacing": list(spacing),
        "normalization_schemes": list(schemes),
        "use_mask_for_norm": list(masked),
        **{
            f"resampling_fn_{what}": "resample_data_or_seg_to_shape"
            for what in ("data", "seg", "probabilities")
        },
        "resampling_fn_data_kwargs": {**RESAMPLING, "order": 3},
        "resampling_fn_seg_kwargs": {**RESAMPLING, "order": 1, "is_seg": True},
        "resampling_fn_probabilities_kwargs": {**RESAMPLING, "order": 1},
        "architecture": architecture(strides, kernels),
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset802_Made",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(forward),
        "transpose_backward": [list(forward).index(axis) for axis in range(3)],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(n): dict(CT) for n in range(len(schemes))},
    }


LABELS = {"labels": {"background": 0, "organ": 1, "tumour": 2}}
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "tumour": 2}, "regions_class_order": [1, 2]}
FLAT = {"strides": [row[1:] for row in STRIDES], "kernels": [row[1:] for row in KERNELS]}
VARIANTS = {
    "no resampling": ({}, LABELS),
    "resampled": ({"spacing": (1.0, 1.3, 0.8)}, LABELS),
    "thick slices": ({"spacing": (4.5, 1.0, 1.2)}, LABELS),
    "axes in another order": ({"forward": (2, 0, 1), "spacing": (0.8, 1.4, 1.0)}, LABELS),
    "CT": ({"schemes": ("CTNormalization",), "spacing": (1.5, 1.1, 1.0)}, LABELS),
    "two channels": (
        {"schemes": ("ZScoreNormalization", "RescaleTo01Normalization"), "masked": (True, False)},
        LABELS,
    ),
    "regions": ({"spacing": (1.6, 1.0, 1.0)}, REGIONS),
    "slices": ({"patch": (16, 12), "spacing": (1.3, 1.0), **FLAT}, LABELS),
    "slices in another order": (
        {"patch": (16, 12), "spacing": (1.2, 0.9), "forward": (1, 0, 2), **FLAT},
        LABELS,
    ),
}


def make_fold(folder, plans, labels, level_of_heads=20.0):
    """A trained fold in the folders of nnU-Net: random weights, heads that leave few ties."""
    channels = len(plans["foreground_intensity_properties_per_channel"])
    names = {str(n): f"channel {n}" for n in range(channels)}
    dataset = {"channel_names": names, "numTraining": 1, "file_ending": ".nii.gz", **labels}
    heads = len(labels["labels"]) - ("regions_class_order" in labels) - ("ignore" in labels["labels"])
    torch.manual_seed(0)
    settings = plans["configurations"]["3d_fullres"]
    network = build_network(settings["architecture"], channels, heads, deep_supervision=True)
    for head in network.net.heads.values():
        head.weight.data *= level_of_heads
        nn.init.normal_(head.bias)
    dims = len(settings["patch_size"])
    folder = folder / "Dataset802_Made" / "nnUNetTrainerUNetPlusPlus__nnUNetPlans__3d_fullres" / "fold_0"
    folder.mkdir(parents=True)
    (folder.parent / "plans.json").write_text(json.dumps(plans))
    (folder.parent / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": network.state_dict(),
        "current_epoch": 1,
        "trainer_name": "nnUNetTrainerUNetPlusPlus",
        "inference_allowed_mirroring_axes": tuple(range(dims)),
    }
    torch.save(checkpoint, folder / "checkpoint_final.pth")
    return Fold(folder, "3d_fullres")


def write_case(folder, channels, spacing=(1.0, 1.1, 1.3), size=(20, 17, 15)):
    """Volumes of smooth noise with a border of 0; the patch is larger on some axes and smaller on others."""
    folder.mkdir(parents=True)
    paths, rng = [], np.random.default_rng(3)
    for n in range(channels):
        values = rng.normal(100, 60, size)
        values = (values + np.roll(values, 1, 0) + np.roll(values, 1, 1) + np.roll(values, 1, 2)) / 4
        values[:3], values[:, :, -2:] = 0, 0
        affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1])
        affine[:3, 3] = 7, -20, 31
        paths.append(folder / f"case_{n:04}.nii.gz")
        nib.save(nib.Nifti1Image(values.astype(np.float32), affine), paths[-1])
    return [str(path) for path in paths]


def spacing_of(name):
    return (1.0, 1.1, 5.0) if name == "thick slices" else (1.0, 1.1, 1.3)


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request, tmp_path):
    """A fold, the files of a case, and the name of the variant."""
    pytest.importorskip("nnunetv2", reason='pip install -e ".[nnunet]"')
    changes, labels = VARIANTS[request.param]
    plans = make_plans(**changes)
    fold = make_fold(tmp_path / "results", plans, labels)
    channels = len(plans["foreground_intensity_properties_per_channel"])
    return fold, write_case(tmp_path / "scans", channels, spacing_of(request.param)), request.param


# A level as a bundle


def exported(fold, out, level):
    from monai_unetpp.nnunet.export import export_level

    return export_level(fold, level, out)


@pytest.mark.parametrize("level", [1, 2])
def test_bundle_has_the_voxels_of_their_predictor(level, variant, tmp_path):
    fold, paths, _ = variant
    predictor = fold.predictor(torch.device("cpu"))
    set_level(predictor.network, level)
    image, properties = fold.plans.image_reader_writer_class().read_images(paths)
    theirs = predictor.predict_single_npy_array(image, properties).T
    out = exported(fold, tmp_path / "made", level)
    scans, masks = str(Path(paths[0]).parent), tmp_path / "masks"
    main(["segment", "-i", scans, "-o", str(masks), "--bundle", str(out), "--device", "cpu"])
    ours = voxels(next(masks.glob("*_seg.nii.gz")))
    assert len(np.unique(theirs)) > 1
    assert np.mean(ours != theirs) < 0.002  # sums in half precision, in another order of axes


def test_preprocessing_is_theirs_up_to_the_order_of_axes(variant, tmp_path):
    from monai.bundle import ConfigParser

    fold, paths, _ = variant
    config = ConfigParser()
    config.read_config(str(exported(fold, tmp_path / "made", 1) / "inference.json"))
    ours = config.get_parsed_content("preprocessing")({"image": paths[0]})["image"].numpy()
    preprocessor = fold.settings.preprocessor_class(verbose=False)
    theirs, _, _ = preprocessor.run_case(paths, None, fold.plans, fold.settings, fold.dataset_json)
    order = [2 - axis for axis in fold.plans.transpose_forward]
    np.testing.assert_allclose(ours.transpose(0, *(1 + axis for axis in order)), theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "image_reader_writer",
            "NibabelIOWithReorient",
            "image_reader_writer of the plans must be SimpleITKIO or",
        ),
        (
            "resampling_fn_data",
            "resample_torch_fornnunet",
            "resampling_fn_data of the plans must be resample_data",
        ),
        (
            "normalization_schemes",
            ["RGBTo01Normalization"],
            "normalization_schemes of the plans must be ZScore",
        ),
        ("preprocessor_name", "Own", "preprocessor_name of the plans must be DefaultPreprocessor .* got Own"),
    ],
    ids=["reader", "resampling", "normalisation", "preprocessor"],
)
def test_plans_that_a_bundle_would_not_follow_are_refused(key, value, message, tmp_path):
    pytest.importorskip("nnunetv2", reason='pip install -e ".[nnunet]"')
    plans = make_plans()
    where = plans if key in plans else plans["configurations"]["3d_fullres"]
    where[key] = value
    fold = make_fold(tmp_path, plans, LABELS)
    with pytest.raises(ValueError, match=message):
        exported(fold, tmp_path / "made", 1)
    assert not (tmp_path / "made").exists()


def test_level_without_scores_has_to_be_named(tmp_path):
    pytest.importorskip("nnunetv2", reason='pip install -e ".[nnunet]"')
    from monai_unetpp.nnunet.export import chosen_level

    with pytest.raises(FileNotFoundError, match=r"give --level, or run monai-unetpp nnunet levels"):
        chosen_level(make_fold(tmp_path, make_plans(), LABELS))


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ({"labels": {**LABELS["labels"], "ignore": 3}}, [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]),
        (REGIONS, [[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 0]]),
    ],
    ids=["a label that is ignored", "regions"],
)
def test_levels_are_scored_on_classes_or_regions_where_somebody_annotated(labels, wanted, tmp_path):
    pytest.importorskip("nnunetv2", reason='pip install -e ".[nnunet]"')
    from monai_unetpp.nnunet.levels import as_item

    fold = make_fold(tmp_path, make_plans(), labels)
    ignores = "ignore" in labels["labels"]
    values = np.array([0, 1, 2, 1 if ignores else 0]).reshape(1, 1, 4)
    annotated = np.array([0, 1, 2, 3 if ignores else 0]).reshape(1, 1, 4)  # 3: neither right nor wrong
    item = as_item(fold, values, annotated, (1.5, 1.0, 2.0))
    assert item["pred"].flatten(1).tolist() == item["label"].flatten(1).tolist() == wanted
    assert item["label"].pixdim.tolist() == [1.5, 1.0, 2.0]


def test_windows_are_as_few_as_possible_and_reach_both_edges():
    seen = []
    windows = PlansWindows((8, 8, 1), slice_axis=2)

    def network(x):
        seen.append(x.shape)
        return x

    x = torch.rand(1, 1, 20, 5, 3)
    assert torch.allclose(windows(x, network).float(), x, atol=2e-3)  # half precision
    assert seen == [(1, 1, 8, 8)] * (4 * 3)  # steps of at most 4 on an axis of 20, and every slice


def test_mirrored_windows_are_averaged_in_every_combination():
    calls = []

    def network(x):
        calls.append(x)
        return x * torch.arange(4.0)[:, None, None]  # not the same in a mirror

    x = torch.ones(1, 1, 4, 4, 4)
    found = PlansWindows((4, 4, 4), mirrored=(0, 1))(x, network)
    assert len(calls) == 4
    inside = found[..., 1:, 1:, 1:].float()  # weights at corners are nearly 0 in half precision
    assert torch.allclose(inside, torch.full_like(inside, 1.5), atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schemes": ["Other"]}, "schemes must be of ZScoreNormalization.*got Other"),
        ({"masked": [True, False]}, "one entry per channel, got 1, 2 and 1"),
        ({"schemes": ["CTNormalization"], "intensities": [{"mean": 1}]}, "for CT, std is missing"),
    ],
    ids=["scheme", "channels", "CT"],
)
def test_preprocessing_checks_its_arguments(changes, message):
    given = {"schemes": ["NoNormalization"], "masked": [False], "intensities": [{}], **changes}
    with pytest.raises(ValueError, match=message):
        PlansPreprocessd("image", (1, 1, 1), **given)


# Plans


def test_plans_map_one_to_one():
    kernels = [[1, 3, 3], *[[3, 3, 3]] * 2]
    found = network_arguments(architecture(STRIDES, kernels), in_channels=2, out_channels=3)
    net = UNetPlusPlus(**found)
    assert net.spec.channels == (4, 6, 8)
    assert net.spec.strides == ((1, 2, 2), (2, 2, 2))
    assert net.spec.kernel_size == ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    norm = net.nodes["x_0_1"].convs.conv_0.adn.N
    assert (type(norm), norm.eps, norm.affine) == (nn.InstanceNorm3d, 1e-05, True)
    act = net.nodes["x_0_1"].convs.conv_0.adn.A
    assert (type(act), act.negative_slope) == (nn.LeakyReLU, 0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [[2, 2, 2], [2, 2, 2], [2, 2, 2]]}, "strides must begin with 1 on every axis"),
        ({"nonlin_first": True}, "nonlin_first must be false"),
        ({"norm_op": "torch.nn.LayerNorm"}, "norm_op of the plans must be InstanceNorm or BatchNorm"),
        ({"nonlin": "torch.nn.Hardtanh"}, "nonlin must be one of MONAI's activations.*got Hardtanh"),
    ],
    ids=["strides", "order", "norm", "activation"],
)
def test_plans_that_our_network_cannot_follow_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        network_arguments(architecture(**{"strides": STRIDES, "kernels": KERNELS, **changes}), 1, 2)


def test_blocks_of_other_networks_are_named():
    made = architecture(STRIDES, KERNELS)
    assert len(differences(made)) == 1
    made["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    assert "in place of the blocks of ResidualEncoderUNet" in differences(made)[1]


def large_plans(folder, batch=2, patch=(128, 128, 128)):
    """Plans of six stages, as nnU-Net makes them for 8 GB."""
    strides = [[1, 1, 1], *[[2, 2, 2]] * 5]
    plans = make_plans(patch=patch, strides=strides, kernels=[[3, 3, 3]] * 6)
    settings = plans["configurations"]["3d_fullres"]
    settings["architecture"]["arch_kwargs"]["features_per_stage"] = [32, 64, 128, 256, 320, 320]
    settings["batch_size"] = batch
    settings["median_image_size_in_voxels"] = [130.0, 512.0, 512.0]
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(LABELS))
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    return folder / "nnUNetPlans.json"


def memory_of(settings, **kind):
    arguments = network_arguments(settings["architecture"], 1, 3)
    with torch.device("meta"):
        net = UNetPlusPlus(**{**arguments, **kind})
    return total_memory(net, settings["patch_size"], settings["batch_size"], "cuda")


def test_added_configuration_takes_no_more_memory_than_their_network(tmp_path, capsys):
    path = large_plans(tmp_path)
    before = json.loads(path.read_text())
    main(["nnunet", "plans", str(path)])
    said, after = capsys.readouterr().out, json.loads(path.read_text())
    added = after["configurations"].pop("3d_fullres_unetpp")
    assert after == before
    theirs = before["configurations"]["3d_fullres"]
    assert memory_of(added) <= memory_of(theirs, skips="long", deep_supervision=False)
    assert added["inherits_from"] == "3d_fullres"
    kwargs = added["architecture"]["arch_kwargs"]
    assert kwargs["n_stages"] == len(kwargs["strides"]) == 5
    assert all(n % 16 == 0 for n in added["patch_size"])
    assert "stages 6 -> 5: levels beyond L4, the papers' depth" in said
    assert re.search(r"patch 128 x 128 x 128 -> \d+ x \d+ x \d+: memory", said)
    assert "nnUNetv2_train" in said


def test_batch_becomes_smaller_before_the_patch(tmp_path):
    path = large_plans(tmp_path, batch=8, patch=(64, 64, 64))
    added = add_configuration(path)
    made = json.loads(path.read_text())["configurations"][added.name]
    assert made["patch_size"] == [64, 64, 64]
    assert 2 <= made["batch_size"] < 8
    larger = copy.deepcopy(made)
    larger["batch_size"] += 1
    theirs = json.loads(path.read_text())["configurations"]["3d_fullres"]
    assert memory_of(larger) > memory_of(theirs, skips="long", deep_supervision=False)


def test_plans_that_fit_are_not_changed(tmp_path):
    path = large_plans(tmp_path)
    before = path.read_bytes()
    added = add_configuration(path, memory=1e12)
    assert added.name == "3d_fullres"
    assert "was not changed" in added.lines[-1]
    assert path.read_bytes() == before


def test_added_configuration_is_read_by_nnunet(tmp_path):
    handler = pytest.importorskip(
        "nnunetv2.utilities.plans_handling.plans_handler", reason='pip install -e ".[nnunet]"'
    )
    path = large_plans(tmp_path)
    name = add_configuration(path, stages=3).name
    settings = handler.PlansManager(str(path)).get_configuration(name)
    assert len(settings.pool_op_kernel_sizes) == 3
    assert settings.data_identifier == "nnUNetPlans_3d_fullres"  # nothing is preprocessed again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"configuration": "3d_lowres"}, "configuration must be one of .*3d_fullres, got 3d_lowres"),
        ({"memory": 2.0**20}, r"memory must be at least .*GB for 2 stages"),
        ({"stages": 7}, "stages must be 2..6, those of the configuration, got 7"),
        ({"name": "3d_fullres"}, "has a configuration 3d_fullres, which is not overwritten"),
    ],
    ids=["configuration", "memory", "stages", "name"],
)
def test_plans_without_an_answer_are_left_alone(options, message, tmp_path):
    path = large_plans(tmp_path)
    before = path.read_bytes()
    with pytest.raises((ValueError, FileExistsError), match=message):
        add_configuration(path, **options)
    assert path.read_bytes() == before
