# SPDX-License-Identifier: Apache-2.0
"""Packed bundles: the model zoo's own acceptance steps, and what MONAI Label and MONAI Deploy read."""

import json
import locale
import logging
import re
import shlex
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from processes import python, torchrun
from safetensors.torch import load_file

from bundles import BUNDLES, LABELS, TINY_TRAINING, affine, ball, schema, write_cases
from monai_unetpp import UNetPlusPlus, prune
from monai_unetpp.__main__ import main
from monai_unetpp.bundle import copy_bundle, pack_bundle, parse_value
from monai_unetpp.levels import read_calibration
from monai_unetpp.segment import load_pipeline
from monai_unetpp.weights import read_record

TRAINING = {key: value for key, value in TINY_TRAINING.items() if key not in ("device", "max_epochs")}

SHIPPED = BUNDLES / "lung_nodule" / "weights" / "model.pt"
NET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": (16, 32, 64, 128), "strides": 2}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The lung nodule bundle with the weights that ship, the package's code within."""
    out = tmp_path_factory.mktemp("zoo") / "lung_nodule_ct_unetpp"
    return pack_bundle(BUNDLES / "lung_nodule", SHIPPED, out)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights for the liver bundle, all levels, beside nothing else."""
    path = tmp_path_factory.mktemp("liver") / "model.pt"
    torch.manual_seed(0)
    torch.save(UNetPlusPlus(**NET).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def pruned(weights, tmp_path_factory):
    """The liver bundle at L2."""
    return pack_bundle(BUNDLES / "liver", weights, tmp_path_factory.mktemp("zoo") / "liver_L2", level=2)


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """The liver bundle with its overlay of two dimensions, and the weights that ship."""
    out = tmp_path_factory.mktemp("zoo") / "liver_2d"
    return pack_bundle(BUNDLES / "liver", BUNDLES / "liver/weights/slices.pt", out, overlays=["slices"])


@pytest.fixture(scope="module")
def random_files(tmp_path_factory):
    """Ten volumes and labels of zeros and ones, as the zoo's tests draw them."""
    folder = tmp_path_factory.mktemp("random")
    rng = np.random.default_rng(0)
    for n in range(10):
        for kind in ("image", "label"):
            voxels = rng.integers(0, 2, (24, 24, 24)).astype(np.int8)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"{kind}_{n}.nii.gz")
    return folder


def pairs(folder):
    return [
        {"image": str(path), "label": str(path).replace("image", "label")}
        for path in sorted(folder.glob("image_*"))
    ]


def network_of(root):
    parser = ConfigParser(json.loads((root / "configs" / "inference.json").read_text()))
    return parser.get_parsed_content("network_def")


# The zoo


@pytest.mark.parametrize("bundle", ["packed", "pruned"])
def test_layout_is_that_of_the_zoo(bundle, request):
    root = request.getfixturevalue(bundle)
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert files >= {
        *("LICENSE", "docs/README.md", "docs/data_license.txt", "docs/model_card.md"),
        *(f"configs/{name}.json" for name in ("metadata", "train", "evaluate", "inference")),
        *("configs/multi_gpu_train.json", "configs/logging.conf", "models/model.pt", "models/model.ts"),
    }
    assert max(path.stat().st_size for path in root.rglob("*")) < 100e6  # larger ones must be links
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert metadata["pytorch_version"] == torch.__version__.partition("+")[0]


@pytest.mark.filterwarnings("ignore:No hash value provided for .*schema.json:UserWarning")
@pytest.mark.parametrize("bundle", ["packed", "pruned"])
def test_zoo_verifies_metadata_and_network(bundle, request, tmp_path):
    root = request.getfixturevalue(bundle)
    (tmp_path / "schema.json").write_text(json.dumps(schema()))
    metadata, inference = root / "configs" / "metadata.json", root / "configs" / "inference.json"
    monai.bundle.verify_metadata(str(metadata), filepath=str(tmp_path / "schema.json"))
    monai.bundle.verify_net_in_out(
        "network_def",
        meta_file=str(metadata),
        config_file=str(inference),
        bundle_root=str(root),
        device="cpu",
    )


@pytest.mark.parametrize("bundle", ["packed", "pruned"])
def test_zoo_exports_by_script_what_is_in_the_archive(bundle, request, tmp_path):
    root = request.getfixturevalue(bundle)
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "verify_model.ts"),
        ckpt_file=str(root / "models" / "model.pt"),
        meta_file=str(root / "configs" / "metadata.json"),
        config_file=str(root / "configs" / "inference.json"),
        bundle_root=str(root),
    )
    net = network_of(root)
    net.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True))
    x = torch.rand(1, 1, 20, 24, 16)
    with torch.no_grad():
        wanted = net.eval()(x)
        for path in (tmp_path / "verify_model.ts", root / "models" / "model.ts"):
            torch.testing.assert_close(torch.jit.load(path).eval()(x), wanted, atol=1e-4, rtol=1e-4)


@pytest.fixture
def logging_as_before():
    """What logging.conf does to the root logger, undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("logging_as_before")
def test_zoo_trains_evaluates_and_infers_on_random_files(packed, random_files, tmp_path):
    cases, configs = pairs(random_files), packed / "configs"
    common = {
        "logging_file": str(configs / "logging.conf"),
        "meta_file": str(configs / "metadata.json"),
        "bundle_root": str(packed),
        "dataset_dir": str(random_files),
        "device": "$torch.device('cpu')",
    }
    train = {
        **{**TRAINING, "max_epochs": 1, "pixdim": [1.0, 1.0, 1.0]},
        **{
            "ckpt_dir": str(tmp_path),
            "log_dir": str(tmp_path / "runs"),
            "output_dir": str(tmp_path / "eval"),
        },
        "split": [cases[:8], cases[8:]],
    }
    trainer = ConfigWorkflow(str(configs / "train.json"), workflow_type="train", **common, **train)
    trainer.initialize()
    assert not trainer.check_properties()
    trainer.run()
    trainer.finalize()
    files = [str(configs / f"{name}.json") for name in ("train", "evaluate")]
    validator = ConfigWorkflow(files, workflow_type="eval", **common, **train)
    validator.initialize()
    validator.run()
    validator.finalize()
    assert (tmp_path / "eval" / "val_mean_dice_raw.csv").is_file()
    inferrer = ConfigWorkflow(
        str(configs / "inference.json"),
        workflow_type="infer",
        **common,
        **{"output_dir": str(tmp_path / "out"), "dataset#data": [{"image": case["image"]} for case in cases]},
    )
    inferrer.initialize()
    assert not inferrer.check_properties()
    inferrer.run()
    inferrer.finalize()
    assert len([*(tmp_path / "out").rglob("*.nii.gz")]) == 10


def test_standalone_bundle_runs_its_own_code_in_two_processes(packed, random_files, tmp_path):
    script = "import monai_unetpp, sys; sys.stdout.write(monai_unetpp.__file__)"
    assert Path(python("-c", script, cwd=packed).stdout) == packed / "monai_unetpp" / "__init__.py"
    metadata = json.loads((packed / "configs" / "metadata.json").read_text())
    assert "monai-unetpp" not in metadata["required_packages_version"]
    config = json.loads((packed / "configs" / "train.json").read_text())
    cases = pairs(random_files)
    config |= {**TINY_TRAINING, "max_epochs": 1, "pixdim": [1.0, 1.0, 1.0], "split": [cases[:2], cases[2:5]]}
    config |= {"dataset_dir": str(random_files), "ckpt_dir": str(tmp_path), "log_dir": str(tmp_path / "runs")}
    (tmp_path / "train.json").write_text(json.dumps(config))
    files = f"['{tmp_path / 'train.json'}','configs/multi_gpu_train.json']"
    command = ["-m", "monai.bundle", "run", "--config_file", files, "--meta_file", "configs/metadata.json"]
    done = torchrun(*command, cwd=packed)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.pt").is_file()


# What is packed


def test_packed_weights_are_those_of_the_checkpoint_and_their_calibration_holds(packed):
    weights = torch.load(packed / "models" / "model.pt", weights_only=True)
    shipped = torch.load(SHIPPED, weights_only=True)
    assert weights.keys() == shipped.keys()
    assert all(torch.equal(weights[key], shipped[key]) for key in weights)
    assert read_calibration(packed / "models" / "model.pt").exit == read_calibration(SHIPPED).exit


def test_packed_level_is_the_head_of_the_network(pruned, weights):
    net = UNetPlusPlus(**NET)
    net.load_state_dict(torch.load(weights, weights_only=True))
    wanted, packed = prune(net, 2).state_dict(), torch.load(pruned / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(packed[key], wanted[key]) for key in wanted)
    assert network_of(pruned).depth == 2
    assert not (pruned / "configs" / "levels.json").exists()


def test_safetensors_are_the_same_weights(packed):
    weights = torch.load(packed / "models" / "model.pt", weights_only=True)
    safe = load_file(packed / "models" / "model.safetensors")
    assert safe.keys() == weights.keys()
    assert all(torch.equal(safe[key], weights[key]) for key in weights)


def test_overlay_becomes_part_of_configs_that_stand_alone(slices):
    root = slices
    for name in ("train", "inference"):
        config = json.loads((root / "configs" / f"{name}.json").read_text())
        assert (config["spatial_dims"], config["hu_range"]) == (2, [0, 255])
        assert config["bundle_root"] == "."
    assert not (root / "configs" / "slices.json").exists()
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert (pred["spatial_shape"], pred["channel_def"]) == ([192, 192], {"0": "background", "1": "liver"})
    assert "0..255 HU" in metadata["image_classes"]


@pytest.mark.parametrize("bundle", ["packed", "pruned", "slices"])
def test_readme_names_files_as_they_lie_now(bundle, request):
    root = request.getfixturevalue(bundle)
    text = (root / "docs" / "README.md").read_text()
    assert not re.search(r"bundles/(liver|lung_nodule)", text)
    for name in re.findall(r"configs/\w+\.json", text):
        assert (root / name).is_file() or (bundle == "pruned" and "levels" in name), name
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (root / "docs" / target).is_file()


def test_readme_says_which_overlay_is_in_the_configs(slices, pruned):
    said = "**In this folder `slices.json` is in `train.json` and `inference.json` already.**"
    text = (slices / "docs" / "README.md").read_text()
    assert said in text
    assert said not in (pruned / "docs" / "README.md").read_text()
    assert "--overlay" not in text
    assert "--config_file configs/train.json --dataset_dir FOLDER --hounsfield False" in text


def test_model_card_is_that_of_the_weights(packed, pruned):
    assert "Not for clinical use" in (packed / "docs" / "model_card.md").read_text()
    assert "were not stated by whoever packed them" in (pruned / "docs" / "model_card.md").read_text()


def test_documents_are_packed_where_the_locale_has_no_other_letters(packed, tmp_path):
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")  # the README has a plus-minus sign
        again = pack_bundle(BUNDLES / "lung_nodule", SHIPPED, tmp_path / packed.name)
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    for name in ("docs/README.md", "configs/metadata.json"):
        assert (again / name).read_bytes() == (packed / name).read_bytes()


def test_bundle_that_is_not_there_or_does_not_fit_is_an_error_and_leaves_nothing(weights, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"bundle must be the folder of a bundle, with train\.json"):
        pack_bundle(tmp_path / "none", weights, out)
    with pytest.raises(ValueError, match=r"does not fit the network .*out_channels 3 in the file, 2"):
        pack_bundle(BUNDLES / "lung_nodule", weights, out)
    with pytest.raises(FileNotFoundError, match=r"card must be a text file"):
        pack_bundle(BUNDLES / "liver", weights, out, card=tmp_path / "none.md")
    assert not any(tmp_path.iterdir())


def test_folder_that_is_there_is_kept_unless_it_is_a_packed_bundle_to_overwrite(weights, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists, and is not overwritten"):
        pack_bundle(BUNDLES / "liver", weights, out)
    with pytest.raises(FileExistsError, match="out must be a packed bundle to be replaced"):
        pack_bundle(BUNDLES / "liver", weights, out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


# Bundles come with the package


@pytest.mark.parametrize("name", ["liver", "lung_nodule"])
def test_bundle_is_written_as_it_is_in_the_repository(name, tmp_path):
    copy = copy_bundle(name, tmp_path / "bundles")
    assert copy == tmp_path / "bundles" / name
    known = {".json", ".conf", ".md", ".txt", ".pt", ""}
    shipped = [p for p in (BUNDLES / name).glob("*") if p.is_file()] + [
        *(BUNDLES / name / "weights").glob("*")
    ]
    files = {path.relative_to(BUNDLES / name) for path in shipped if path.suffix in known}
    assert {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()} == files
    for file in files:
        written, root = (copy / file).read_bytes(), copy.as_posix().encode()  # bundle_root follows the folder
        assert written.replace(root, b"bundles/" + name.encode()) == (BUNDLES / name / file).read_bytes()


def test_bundle_that_is_there_is_kept_and_what_it_made_is_never_touched(tmp_path):
    made = tmp_path / "liver" / "models" / "model.pt"
    made.parent.mkdir(parents=True)
    made.write_text("trained")
    with pytest.raises(FileExistsError, match="exists, and is not overwritten"):
        copy_bundle("liver", tmp_path)
    copy_bundle("liver", tmp_path, overwrite=True)
    assert made.read_text() == "trained"
    assert (tmp_path / "liver" / "train.json").is_file()


def test_bundle_of_another_name_is_an_error_that_lists_them(tmp_path):
    with pytest.raises(ValueError, match="bundle must be one of hippocampus, liver, lung_nodule, got"):
        copy_bundle("spleen", tmp_path)


# The packed README


def readme_commands(root):
    """The commands of a packed README that this package answers for, with names of files that exist."""
    text = (root / "docs" / "README.md").read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        for placeholder, name in {
            "FOLDER": "own",
            "Task03_Liver": "own",
            "ct.nii.gz": "own/imagesTr/a.nii.gz",
        }.items():
            line = line.replace(placeholder, name)
        words = shlex.split(line.replace("SCANS", "own/imagesTr").replace("/L2/", "/L3/"))
        # other data, minutes of export, a large network, lesions that are found and others that are not
        if words[:2] == ["python", "-m"] and not re.search(r"--images|onnx|msd|findings\.json", line):
            yield words[2:]


@pytest.mark.filterwarnings("ignore")
def test_commands_of_a_packed_readme_run_in_its_folder(weights, tmp_path, monkeypatch):
    root = pack_bundle(BUNDLES / "liver", weights, tmp_path / "packed")
    for folder in ("data", "own"):  # the synthetic data set would take longer
        write_cases(root / folder, (ball(name, affine()) for name in "abcd"))
    monkeypatch.chdir(root)
    small = {**TINY_TRAINING, "max_epochs": 1, "roi_size": [16, 16, 16], "formats": ["pt"]}
    del small["channels"], small["device"]
    ran = Counter()
    for module, *words in readme_commands(root):
        ran[module] += 1
        if module == "monai_unetpp":
            main(words)
            continue
        assert words.pop(0) == "run"
        given = {k.removeprefix("--"): parse_value(v) for k, v in zip(words[::2], words[1::2], strict=True)}
        files = re.findall(r"configs/\w+\.json", str(given["config_file"]))
        known = {key for name in files for key in json.loads(Path(name).read_text())}
        given |= {"max_epochs": 2} if "max_epochs" in given else {}
        given |= {"out_channels": 3} if "out_channels" in given else {}
        given |= {"level": 3} if "configs/levels.json" in files else {}
        monai.bundle.run(**{**{key: small[key] for key in small if key in known}, **given})
    assert ran["monai.bundle"] >= 7
    assert ran["monai_unetpp"] >= 1
    assert read_record(root / "models" / "model.pt").labels == list(
        LABELS.values()
    )  # the data's, not the pack's


# MONAI Label reads one file, offers its options, and loads weights by itself


def label_config(root, **options):
    """The configuration as MONAI Label reads it, with what a user chose."""
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.json"))
    parser.config["bundle_root"] = str(root)
    parser["displayable_configs"].update(options)
    parser.parse()
    return parser


def scan(size):
    meta = {"affine": torch.eye(4), "original_affine": np.eye(4), "spatial_shape": np.array(size)}
    return MetaTensor(torch.rand(1, 1, *size), meta=meta)


def test_monai_label_offers_level_and_overlap_and_both_take_effect(packed):
    assert label_config(packed).get_parsed_content("displayable_configs") == {"overlap": 0.5, "level": 3}
    parser = label_config(packed, level=1, overlap=0.125)
    inferer, net = parser.get_parsed_content("inferer"), parser.get_parsed_content("network_def")
    assert inferer.inferer.overlap == 0.125
    net.load_state_dict(torch.load(packed / "models" / "model.pt", weights_only=True))
    image = scan((44, 40, 40))
    found = inferer(image, net.eval())
    assert net.level == net.depth  # as it was
    pruned = prune(net, 1)
    inferer.level = None
    assert torch.equal(found, inferer(image, pruned))


@pytest.mark.parametrize(("level", "option", "wanted"), [(None, 3, None), (None, 2, 2), (2, 3, 2), (1, 2, 1)])
def test_level_of_the_command_line_comes_before_the_option(packed, level, option, wanted):
    parser = label_config(packed, level=option)
    parser["level"] = level
    assert parser.get_parsed_content("inferer").level == wanted


@pytest.mark.parametrize("level", [None, 1, "auto"], ids="{}".format)
def test_segment_turns_one_dial_in_a_packed_bundle(packed, tmp_path, level):
    settings = {} if level is None else {"level": level}
    calibrated = read_calibration(packed / "models" / "model.pt").level
    wanted = {None: 3, 1: 1, "auto": calibrated}[level]
    pipeline = load_pipeline(packed, "scans", tmp_path, device="$torch.device('cpu')", **settings)
    assert pipeline.network.level == wanted
    assert pipeline.inferer.level in (None, wanted)


def test_monai_label_can_drop_out(packed):
    parser = label_config(packed)
    parser["network_def"]["dropout"] = 0.2
    net = parser.get_parsed_content("network_def")
    net.load_state_dict(torch.load(packed / "models" / "model.pt", weights_only=True), strict=False)
    inferer, image = parser.get_parsed_content("inferer"), scan((40, 40, 40))
    torch.manual_seed(0)
    first, second = (inferer(image, net.train()) for _ in range(2))  # epistemic scoring: twice, in training
    assert first.shape == second.shape == (1, 1, 40, 40, 40)


def label_train(root, cases, epochs):
    """Train as MONAI Label's BundleTrainTask does, with its overrides and no others but small sizes."""
    config = ConfigParser.load_config_file(str(root / "configs" / "train.json"))
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(root / "models" / "model.pt"),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    monai.bundle.run(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(root / "configs" / "metadata.json"),
        config_file=str(root / "configs" / "train.json"),
        **{key: value for key, value in TRAINING.items() if key != "channels"},
        **{
            "bundle_root": str(root),
            "train#trainer#max_epochs": epochs,  # this one alone, past the bundle's own count
            "train#dataset#data": cases[:-1],
            "validate#dataset#data": cases[-1:],
            "device": "cpu",  # a word, as its name_to_device returns it
            "train#handlers": [loader, *config["train"]["handlers"]],
        },
        max_epochs=1,
    )


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # it does not know whom we trust
@pytest.mark.filterwarnings("ignore:there are more than 1 component have name .CheckpointLoader")
def test_monai_label_trains_again_and_again_where_the_weights_are(packed, random_files, tmp_path):
    root, cases = tmp_path / "lung_nodule_ct_unetpp", pairs(random_files)[:3]
    shutil.copytree(packed, root)
    label_train(root, cases, 3)
    models = root / "models"
    assert {path.name for path in models.iterdir()} == {
        "1", "checkpoint_epoch=2.pt", "checkpoint_epoch=3.pt", "model.json", "model.pt",
    }  # fmt: skip
    assert not (root / "data").exists()  # the bundle's own data set
    assert read_record(models / "model.pt").data == Path(cases[0]["image"]).parent.name
    before = {path.name: path.read_bytes() for path in (packed / "models").iterdir()}
    assert {path.name: path.read_bytes() for path in (models / "1").iterdir()} == before
    first = {path.name: path.read_bytes() for path in models.iterdir() if path.is_file()}
    label_train(root, cases, 2)
    assert {path.name: path.read_bytes() for path in (models / "2").iterdir()} == first
    assert {path.name for path in models.glob("*.pt")} == {
        "checkpoint_epoch=1.pt", "checkpoint_epoch=2.pt", "model.pt",
    }  # fmt: skip


def test_packed_slices_have_no_recipe_for_volumes_and_no_command_that_uses_it(tmp_path):
    out = pack_bundle(BUNDLES / "liver", BUNDLES / "liver" / "weights" / "slices.pt", tmp_path / "flat")
    assert not (out / "configs" / "msd.json").exists()
    readme = (out / "docs" / "README.md").read_text()
    assert "configs/msd.json" not in readme
    assert "`msd.json` does not fit the network in this folder" in readme
    named = set(re.findall(r"configs/(\w+\.json)", readme))
    assert named <= {path.name for path in (out / "configs").iterdir()}


# MONAI Deploy takes the archive alone


def test_monai_deploy_finds_in_the_archive_what_it_reads(packed, tmp_path):
    with zipfile.ZipFile(packed / "models" / "model.ts") as archive:
        inside = {name: archive.read(f"model/extra/{name}.json") for name in ("metadata", "inference")}
    (tmp_path / "inference.json").write_bytes(inside["inference"])
    parser = ConfigParser()
    parser.read_meta(json.loads(inside["metadata"]))
    parser.read_config([str(tmp_path / "inference.json")])
    parser.parse()
    pre, post = (parser.get_parsed_content(name).transforms for name in ("preprocessing", "postprocessing"))

    def kept(transforms):  # it loads and saves by itself, and drops what is named so
        return [t for t in transforms if not any(s in type(t).__name__ for s in ("LoadImage", "SaveImage"))]

    meta = {"original_channel_dim": "no_channel", "spatial_shape": np.array((40, 44, 36))}
    meta |= {"affine": np.eye(4), "original_affine": np.eye(4)}
    voxels = torch.rand(40, 44, 36) * 1400 - 1000
    case = {"image": MetaTensor.ensure_torch_and_prune_meta(voxels, meta)}
    for transform in kept(pre):
        case = transform(case)
    assert kept(post) == []
    network = torch.jit.load(packed / "models" / "model.ts").eval()
    with torch.no_grad():
        found = parser.get_parsed_content("inferer")(inputs=case["image"][None], network=network)
    assert found.shape == (1, 1, 40, 44, 36)
