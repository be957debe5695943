# SPDX-License-Identifier: Apache-2.0
"""Models for 3D Slicer's extension MONAIAuto3DSeg: what its inference script reads, as it reads it.

That script itself runs in benchmarks/hosts/slicer.py.
"""

import csv
import json
from functools import partial

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import ScaleIntensityRange
from torch.nn.functional import interpolate

from bundles import BUNDLES, DEEP
from monai_unetpp import UNetPlusPlus, prune
from monai_unetpp.__main__ import main
from monai_unetpp.bundle import copy_bundle
from monai_unetpp.slicer import pack_for_slicer
from monai_unetpp.weights import Record, plain, sha256, write_record

HU = (-150, 250)
LABELS = ["background", "liver", "tumour"]


def network():
    torch.manual_seed(0)
    return UNetPlusPlus(3, 1, 3, channels=DEEP, strides=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of two levels, of which one is enough, and their record."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    net = network()
    torch.save(net.state_dict(), path)
    kept = {"labels": LABELS, "epoch": 7, "scores": {"val_mean_dice": 0.5}, "level": 1}
    write_record(path, Record(sha256(path), network=plain(net.spec.arguments()), **kept))
    return path


@pytest.fixture
def liver(tmp_path):
    """A liver bundle to be changed."""
    return copy_bundle("liver", tmp_path / "bundles")


def change(bundle, **values):
    """Set keys of inference.json."""
    path = bundle / "inference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def normalise(bundle, nonzero):
    """Let a bundle normalise as for MR."""
    for name in ("inference", "train"):
        path = bundle / f"{name}.json"
        config = json.loads(path.read_text())
        scaling = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": nonzero}
        config["preprocessing_transforms"][-1] = {**scaling, "channel_wise": True}
        path.write_text(json.dumps({**config, "hu_range": None}))


def rebuilt(folder):
    """The configuration and the network, as the extension makes them."""
    model = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
    net = ConfigParser(model["config"]["network"]).get_parsed_content()
    net.load_state_dict(model["state_dict"], strict=True)
    return model["config"], net.eval()


def as_the_extension(image, config):
    """The normalisation of its mode ``ct``."""
    low, high = config["intensity_bounds"]
    return torch.sigmoid(ScaleIntensityRange(low, high, -1, 1, clip=False)(image))


def test_configuration_has_what_the_script_reads(weights, out):
    made = pack_for_slicer(BUNDLES / "liver", weights, out)
    assert made == (out, 1, [])
    assert {path.name for path in out.iterdir()} == {"model.pt", "labels.csv", "LICENSE"}
    config, net = rebuilt(out)
    del config["network"]
    assert config == {
        "normalize_mode": "ct",
        "intensity_bounds": [-128.0 * 250, 128.0 * 250],
        "extra_modalities": {},
        "orientation_ras": True,
        "crop_foreground": False,
        "resample_resolution": [5.0, 5.0, 5.0],
        "roi_size": [40, 40, 40],
        "sigmoid": False,
    }
    model = torch.load(out / "model.pt", weights_only=True)
    assert (model["epoch"], model["best_metric"], model["made_by"]["level"]) == (7, 0.5, 1)
    assert isinstance(net(torch.rand(1, 1, 16, 16, 16)), torch.Tensor)


@pytest.mark.parametrize("level", [1, 2])
def test_network_sees_what_it_saw_in_training(level, weights, out):
    pack_for_slicer(BUNDLES / "liver", weights, out, level=level)
    config, net = rebuilt(out)
    hu = torch.linspace(-2000, 4000, 16**3).reshape(1, 1, 16, 16, 16)
    scaled = ScaleIntensityRange(*HU, 0, 1, clip=True)(hu)
    with torch.no_grad():
        wanted = prune(network(), level).eval()(scaled)
        torch.testing.assert_close(net(as_the_extension(hu, config)), wanted, atol=2e-3, rtol=0)
        padded = torch.zeros(1, 1, 16, 16, 16)  # with which the extension pads, and segment as well
        assert torch.equal(net(padded), prune(network(), level).eval()(padded))


def test_what_the_extension_resamples_is_linear_in_the_intensities(weights, out):
    pack_for_slicer(BUNDLES / "liver", weights, out)
    config, net = rebuilt(out)
    torch.manual_seed(1)
    hu = torch.empty(1, 1, 12, 12, 12).uniform_(-1000, 1500)
    resample = partial(interpolate, size=(9, 17, 12), mode="trilinear", align_corners=True)
    seen = []
    net.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(resample(as_the_extension(hu, config)))
    wanted = ScaleIntensityRange(*HU, 0, 1, clip=True)(resample(hu))
    torch.testing.assert_close(seen[0], wanted, atol=1e-3, rtol=0)


def test_networks_of_normalised_images_are_taken_as_they_are(weights, liver, out):
    normalise(liver, nonzero=True)
    pack_for_slicer(liver, weights, out)
    config, net = rebuilt(out)
    assert config["normalize_mode"] == "meanstd"
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(net(x), prune(network(), 1).eval()(x))


def test_labels_have_the_codes_of_the_bundle(weights, out):
    pack_for_slicer(BUNDLES / "liver", weights, out)
    with (out / "labels.csv").open(newline="") as file:
        liver, tumour = csv.DictReader(file)
    assert len(liver) == 2 + 5 * 3
    assert [row["LabelValue"] + row["Name"] for row in (liver, tumour)] == ["1liver", "2tumour"]
    fields = ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")

    def code(row, name):
        return [row[f"{name}CodeSequence.{field}"] for field in fields]

    structure = ["SCT", "123037004", "Anatomical Structure"]  # as in Slicer's terminologies
    assert code(liver, "SegmentedPropertyCategory") == structure
    assert code(liver, "SegmentedPropertyType") == ["SCT", "10200004", "Liver"]
    assert code(tumour, "SegmentedPropertyType") == ["SCT", "108369006", "Neoplasm"]
    region = [tumour[f"AnatomicRegionSequence.{field}"] for field in fields]
    assert region == ["SCT", "10200004", "Liver"]
    for name in ("SegmentedPropertyTypeModifierCodeSequence", "AnatomicRegionModifierSequence"):
        assert [tumour[f"{name}.{field}"] for field in fields] == ["", "", ""]


def test_command_says_what_the_extension_leaves_out(out, capsys):
    weights = BUNDLES / "lung_nodule" / "weights" / "model.pt"
    words = ["--checkpoint", str(weights), "--out", str(out), "--slicer"]
    main(["pack", str(BUNDLES / "lung_nodule"), *words])
    level = json.loads(weights.with_suffix(".json").read_text())["level"]
    assert capsys.readouterr().out.splitlines() == [
        f"L{level} for 3D Slicer in {out}; Slicer's Python requires monai-unetpp",
        "unlike with segment, the search is not limited to the lungs (lungs_only)",
    ]
    with pytest.raises(SystemExit):
        main(["pack", str(BUNDLES / "lung_nodule"), *words, "--no-standalone"])
    assert "--no-standalone must be left out with --slicer" in capsys.readouterr().err


def test_several_components_are_announced(weights, liver, out):
    change(liver, largest_component=True)
    [text] = pack_for_slicer(liver, weights, out).left_out
    assert text == "not only the largest component is kept (largest_component)"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"regions": [[1, 2], [2]], "regions_class_order": [1, 2]}, "regions .* writes the first region"),
        ({"roi_size": [40, 40, 1], "spatial_dims": 2}, "spatial_dims .* 3: it slides windows"),
    ],
    ids=["regions", "slices"],
)
def test_what_the_extension_cannot_do_is_refused(values, message, weights, liver, out):
    change(liver, **values)
    if "spatial_dims" in values:
        flat = BUNDLES / "liver" / "weights" / "slices.pt"
        with pytest.raises(ValueError, match=message):
            pack_for_slicer(BUNDLES / "liver", flat, out, overlays=["slices"])
        return
    with pytest.raises(ValueError, match=message):
        pack_for_slicer(liver, weights, out)
    assert not out.exists()


def test_normalisation_with_zeros_is_refused(weights, liver, out):
    normalise(liver, nonzero=False)
    with pytest.raises(ValueError, match="got nonzero False") as caught:
        pack_for_slicer(liver, weights, out)
    assert "plan with --set normalize_nonzero true" in str(caught.value)


def test_only_a_model_for_slicer_is_replaced(weights, tmp_path):
    with pytest.raises(ValueError, match="at 'brats' the extension changes its mode"):
        pack_for_slicer(BUNDLES / "liver", weights, tmp_path / "brats-v1.0.0")
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match=r"out must be a model for 3D Slicer .* is not"):
        pack_for_slicer(BUNDLES / "liver", weights, tmp_path / "mine", overwrite=True)
    first = pack_for_slicer(BUNDLES / "liver", weights, tmp_path / "liver-v1.0.0")
    again = pack_for_slicer(BUNDLES / "liver", weights, first.folder, level=2, overwrite=True)
    assert (first.level, again.level) == (1, 2)
