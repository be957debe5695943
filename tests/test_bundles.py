# SPDX-License-Identifier: Apache-2.0
"""What holds for every bundle: MONAI's own checks, one truth in its JSONs, and one for all bundles."""

import ast
import configparser
import importlib.metadata
import json
import logging
import logging.handlers
import pickle

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from processes import CONTEXT

from bundles import BUNDLES, TINY, TINY_TRAINING, config, schema, workflow
from monai_unetpp import __version__, load_network
from monai_unetpp.data.phantoms import phantom
from monai_unetpp.levels import read_calibration

RECIPES = {"liver": "msd", "lung_nodule": "lidc"}  # overlays for real data, of what is not planned
WORKFLOWS = pytest.mark.parametrize(
    "names", ["train", "train evaluate", "train levels", "train RECIPE", "inference"]
)
SELF_CONTAINED = pytest.mark.parametrize("name", ["train", "inference"])

pytestmark = pytest.mark.slow


@pytest.fixture(params=RECIPES)
def bundle(request):
    return request.param


# MONAI's own checks


@pytest.mark.parametrize("path", sorted(BUNDLES.glob("*/*.json")), ids=lambda p: f"{p.parent.name}-{p.name}")
def test_json_parses_and_says_what_it_is_for(path):
    content = json.loads(path.read_text())
    assert content.get("_desc_") or path.name == "metadata.json"


def test_every_bundle_has_what_a_bundle_has(bundle):
    files = {path.name for path in (BUNDLES / bundle).iterdir() if path.is_file()}
    assert files >= {
        *("train.json", "evaluate.json", "inference.json", "levels.json", "metadata.json", "logging.conf"),
        *("multi_gpu_train.json", "README.md", "LICENSE", "data_license.txt", f"{RECIPES[bundle]}.json"),
    }


@WORKFLOWS
def test_no_property_is_missing(bundle, names, balls, tmp_path):
    names = names.replace("RECIPE", RECIPES[bundle])
    source = {"input": str(balls / "imagesTr")} if names == "inference" else {"dataset_dir": str(balls)}
    settings = {**(TINY if names == "inference" else TINY_TRAINING), "out_channels": 3, **source}
    flow = workflow(bundle, names, tmp_path, **settings)
    flow.initialize()
    assert flow.check_properties() == []


# MONAI warns that a schema without a checksum is not verified: ours was written a line before
VERIFIES = pytest.mark.filterwarnings("ignore:No hash value provided for .*schema.json:UserWarning")


def verify(metadata, folder):
    """MONAI's verification, which finds the schema on the disk and does not download it."""
    (folder / "schema.json").write_text(json.dumps(schema()))
    (folder / "metadata.json").write_text(json.dumps(metadata))
    monai.bundle.verify_metadata(str(folder / "metadata.json"), filepath=str(folder / "schema.json"))


@VERIFIES
def test_metadata_is_as_specified(bundle, tmp_path):
    verify(config(bundle, "metadata"), tmp_path)


@VERIFIES
@pytest.mark.parametrize("key", [key for key in schema()["required"] if key != "schema"])
def test_metadata_without_a_key_would_not_pass(bundle, key, tmp_path):
    metadata = config(bundle, "metadata")
    del metadata[key]
    with pytest.raises(ValueError, match=f"'{key}' is a required property"):
        verify(metadata, tmp_path)


@VERIFIES
def test_metadata_without_a_key_of_a_tensor_would_not_pass(bundle, tmp_path):
    metadata = config(bundle, "metadata")
    del metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    with pytest.raises(ValueError, match="'channel_def' is a required property"):
        verify(metadata, tmp_path)


@SELF_CONTAINED
def test_network_takes_and_gives_what_the_metadata_say(bundle, name):
    monai.bundle.verify_net_in_out(
        "network_def",
        meta_file=str(BUNDLES / bundle / "metadata.json"),
        config_file=str(BUNDLES / bundle / f"{name}.json"),
        device="cpu",
    )


# One truth


@pytest.mark.parametrize(
    "key",
    [
        *("spatial_dims", "in_channels", "out_channels", "channels", "network_def"),
        *("pixdim", "hu_range", "hounsfield", "roi_size", "device", "amp", "amp_kwargs"),
    ],
)
def test_inference_repeats_what_training_says(bundle, key):
    assert config(bundle, "inference")[key] == config(bundle, "train")[key]


def test_inference_preprocesses_as_training_does(bundle):
    there, here = (
        [{**transform, "_desc_": ""} for transform in config(bundle, name)["preprocessing_transforms"]]
        for name in ("train", "inference")
    )
    assert here == there


@pytest.mark.parametrize("name", ["evaluate", "levels", "findings", "inference"])
def test_labels_are_not_resampled_where_they_are_scored(bundle, name):
    assert config(bundle, name)["resampled"] == ["image"]


@pytest.mark.parametrize("key", ["ckpt_path", "eval_cases", "validate#dataset#data", "cache_rate"])
@pytest.mark.parametrize("name", ["levels", "findings"])
def test_levels_and_findings_are_scored_on_what_evaluation_scores(bundle, key, name):
    assert config(bundle, name)[key] == config(bundle, "evaluate")[key]


def test_findings_are_calibrated_with_the_windows_that_segment_uses(bundle):
    used, calibrated = config(bundle, "inference")["windows"], config(bundle, "train")["validate"]["inferer"]
    calibrated |= {"overlap": config(bundle, "findings")["validate#inferer#overlap"]}
    names = ("_target_", "roi_size", "overlap", "mode", "sigmoid")
    assert [used[name] for name in names] == [calibrated[name] for name in names]


@pytest.mark.parametrize("name", ["evaluate", "levels", "multi_gpu_train", "RECIPE"])
def test_overlay_changes_only_what_there_is_to_change(bundle, name):
    name = name.replace("RECIPE", RECIPES[bundle])
    parser = ConfigParser(config(bundle, "train"))
    scored = {"ckpt_path", "eval_cases", "level"}
    new = {
        "evaluate": {*scored, "finalize", "surface_tolerance", "lesion_labels"}
        | {f"validate#additional_metrics#val_{name}" for name in ("mean_iou", "hausdorff95", "surface_dice")},
        "multi_gpu_train": {"backend", "finalize", "train#sampler", "validate#sampler"}
        | {"train#dataloader#sampler", "validate#dataloader#sampler"},
        "levels": {*scored, "levels_dir", "tolerance", "surface_tolerance", "formats", "overwrite"}
        | {"trained", "scores", "report", "export", "exit_tolerance", "exit", "calibration"}
        | {"precision", "precisions", "precision_tolerance"},
    }
    unknown = {key for key in config(bundle, name) if key.lstrip("+") not in parser} - {"_desc_"}
    assert unknown == new.get(name, set())


def test_metadata_describe_the_network(bundle):
    train, metadata = config(bundle, "train"), config(bundle, "metadata")
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert image["num_channels"] == len(image["channel_def"]) == train["in_channels"]
    assert pred["num_channels"] == len(pred["channel_def"]) == train["out_channels"]
    assert image["spatial_shape"] == pred["spatial_shape"] == train["roi_size"]
    assert len(train["roi_size"]) == len(train["pixdim"]) == train["spatial_dims"]
    low, high = train["hu_range"]
    assert f"{low}..{high} HU" in metadata["image_classes"]


def test_metadata_name_the_classes_of_the_phantoms(bundle):
    pred = config(bundle, "metadata")["network_data_format"]["outputs"]["pred"]
    kind = config(bundle, "train")["phantoms"]["kind"]
    assert pred["channel_def"] == phantom.KINDS[kind].labels


def test_metadata_name_versions_that_the_package_supports(bundle):
    metadata = config(bundle, "metadata")
    versions = {canonicalize_name(name): v for name, v in metadata["required_packages_version"].items()}
    assert versions.pop("monai-unetpp") == __version__
    versions |= {
        name: metadata[f"{key}_version"]
        for name, key in zip(("monai", "torch", "numpy"), ("monai", "pytorch", "numpy"), strict=True)
    }
    required = [Requirement(line) for line in importlib.metadata.requires("monai-unetpp")]
    ranges = {canonicalize_name(r.name): r.specifier for r in required if r.marker is None}
    assert versions.keys() <= ranges.keys()
    assert [name for name, version in versions.items() if version not in ranges[name]] == []


def test_newest_version_is_in_the_changelog(bundle):
    metadata = config(bundle, "metadata")
    assert next(iter(metadata["changelog"])) == metadata["version"]


@WORKFLOWS
def test_default_paths_are_those_of_the_repository(bundle, names):
    names = names.replace("RECIPE", RECIPES[bundle]).split()
    flow = ConfigParser(
        ConfigParser.load_config_files([str(BUNDLES / bundle / f"{name}.json") for name in names])
    )
    assert flow["bundle_root"] == f"bundles/{bundle}"
    assert BUNDLES.parent / flow["bundle_root"] == BUNDLES / bundle


# One truth for all bundles


def leaves(tree, at=""):
    """Every value in a JSON by its path; what only describes is left out."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not items:
        return {at: tree}
    return {
        path: value
        for key, child in items
        if key != "_desc_"
        for path, value in leaves(child, f"{at}#{key}" if at else str(key)).items()
    }


@pytest.mark.parametrize(
    "name",
    [
        *("evaluate.json", "levels.json", "early_exit.json", "findings.json", "multi_gpu_train.json"),
        *("logging.conf", "LICENSE"),
    ],
)
def test_file_that_knows_nothing_of_its_bundle_is_the_same_in_all(name):
    assert len({(BUNDLES / bundle / name).read_text() for bundle in RECIPES}) == 1


@pytest.mark.parametrize(
    ("name", "own"),
    [
        (
            "train",
            {"bundle_root", "out_channels", "pixdim", "hu_range", "phantoms#kind", "max_epochs"}
            | {"patches_per_case", "shifted_size", "train#random_transforms"},
        ),
        (
            "inference",
            {"bundle_root", "out_channels", "pixdim", "hu_range"}
            | {"lungs_only", "focus", "preprocessing#transforms"},
        ),
    ],
)
def test_bundles_differ_in_what_they_are_for_and_in_nothing_else(name, own):
    first, *others = (leaves(config(bundle, name)) for bundle in RECIPES)
    for other in others:
        differ = {path for path in first.keys() | other.keys() if first.get(path) != other.get(path)}
        assert {path for path in differ if not path.startswith(tuple(own))} == set()


def test_own_weights_come_before_those_that_ship(bundle, tmp_path):
    parser = ConfigParser(config(bundle, "inference"))
    parser["bundle_root"] = str(tmp_path)
    own, shipped = (tmp_path / name / "model.pt" for name in ("models", "weights"))

    def chosen():
        return ConfigParser(parser.get()).get_parsed_content("ckpt_path")

    assert chosen() == str(own)  # neither: what is missing is what training would make
    for path in (shipped, own):
        path.parent.mkdir()
        path.touch()
        assert chosen() == str(path)


@pytest.mark.parametrize(
    "path", sorted(BUNDLES.glob("*/weights/*.pt")), ids=lambda p: f"{p.parts[-3]}-{p.stem}"
)
def test_weights_that_ship_are_small_fit_and_are_calibrated(path):
    assert path.stat().st_size <= 10e6
    root = path.parents[1]
    overlay = [] if path.stem == "model" else [root / f"{path.stem}.json"]  # weights are named after it
    configs = ConfigParser.load_config_files([str(p) for p in (root / "inference.json", *overlay)])
    network = ConfigParser(configs).get_parsed_content("network_def")
    load_network(network, path)
    assert (path.parent / "README.md").is_file()  # the model card
    heads = {key.split(".")[1] for key in torch.load(path, weights_only=True) if key.startswith("heads.")}
    if len(heads) > 1:  # a level alone has nothing to choose from
        calibration = read_calibration(path)  # by the weights' checksum
        assert 1 <= calibration.level <= network.depth
        assert 0 <= calibration.exit.threshold < 1


# Workers on Windows and macOS are spawned: what they need is pickled


@pytest.mark.parametrize("names", ["train", "train RECIPE", "inference"])
def test_transforms_can_be_pickled(bundle, names, balls, tmp_path):
    names = names.replace("RECIPE", RECIPES[bundle])
    source = {"input": str(balls / "imagesTr")} if names == "inference" else {"dataset_dir": str(balls)}
    flow = workflow(bundle, names, tmp_path, **{**TINY, "out_channels": 3, **source})
    flow.parser.get_parsed_content("imports")
    key = "preprocessing" if names == "inference" else "train#preprocessing"
    transforms = flow.parser.get_parsed_content(key)
    assert len(pickle.loads(pickle.dumps(transforms)).transforms) == len(transforms.transforms)


def test_worker_that_shares_no_memory_loads_what_the_process_itself_loads(balls, tmp_path):
    flow = workflow("liver", "train", tmp_path, **{**TINY_TRAINING, "dataset_dir": str(balls)})
    flow.parser.get_parsed_content("imports")
    dataset = Dataset(
        flow.parser.get_parsed_content("dataset").cases[:1],
        flow.parser.get_parsed_content("validate#preprocessing"),
    )
    [case] = DataLoader(dataset, num_workers=1, multiprocessing_context=CONTEXT)
    assert torch.equal(case["image"][0], dataset[0]["image"])


# Logging


def test_logging_names_classes_of_the_standard_library_and_literals_only(bundle):
    parser = configparser.RawConfigParser()
    parser.read(BUNDLES / bundle / "logging.conf")
    names = []
    for section in parser.values():
        if "class" in section:
            assert issubclass(getattr(logging, section["class"]), (logging.Handler, logging.Formatter))
        for argument in ast.walk(ast.parse(section.get("args", "()"), mode="eval")):
            assert not isinstance(argument, ast.Call)
            names += [argument.id] if isinstance(argument, ast.Name) else []
    assert names == ["sys"]
