# SPDX-License-Identifier: Apache-2.0
"""float32 and bfloat16: where each computes, that it does, and what is written down about it.

Torch computes bfloat16 on any processor, so that what it computes can be tested on all of them: a processor
that is fast in it is pretended.
"""

import csv
import json
import logging
import warnings

import nibabel as nib
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import nn

from bundles import BUNDLES, DEEP, TINY, run, workflow
from monai_unetpp import LevelScore, UNetPlusPlus, prune, score_levels, select_level
from monai_unetpp.__main__ import main
from monai_unetpp.export import OnnxNetwork, export_level
from monai_unetpp.handlers import CPUMixedPrecision
from monai_unetpp.handlers.mixed_precision import AutocastInferer
from monai_unetpp.levels import calibrate_exit, select_precision, write_calibration, write_levels
from monai_unetpp.levels.calibration import ExitScore
from monai_unetpp.network import kernels
from monai_unetpp.segment import load_pipeline, segment
from monai_unetpp.weights import read_record

BFLOAT16 = {"dtype": torch.bfloat16}
BOUND = (
    0.05  # of the largest logit: bfloat16 keeps 8 bits, 0.4 % of each number, over 3 levels of convolutions
)


@pytest.fixture
def fast(monkeypatch):
    """A processor with instructions for bfloat16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


@pytest.fixture
def slow(monkeypatch):
    """A processor without."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    kernels.precision._say_slow.cache_clear()


@pytest.fixture
def x():
    return torch.rand(2, 1, 20, 12, generator=torch.Generator().manual_seed(1))


# Where


@pytest.mark.usefixtures("fast")
def test_processor_with_instructions_for_it_is_fast_in_bfloat16():
    assert kernels.precisions("cpu") == ("float32", "bfloat16")
    assert kernels.precision_of("cpu", True, BFLOAT16) == "bfloat16"
    assert kernels.precision_of("cpu", False, BFLOAT16) == "float32"
    assert not kernels.is_fast_in("float16", "cpu")


@pytest.mark.usefixtures("slow")
def test_processor_without_computes_in_float32_and_says_so_once(tiny, x, caplog):
    assert kernels.precisions("cpu") == ("float32",)
    net = tiny().eval()
    for _ in range(2):
        with torch.no_grad(), kernels.autocast("cpu", True, BFLOAT16)():
            assert torch.equal(net(x), tiny().eval()(x))
    [record] = caplog.records
    assert record.message == (
        "amp is left off: bfloat16 is slower than float32 on this processor; mixed precision on a CPU is "
        "bfloat16, and wants AVX512_BF16 or AMX."
    )


@pytest.mark.parametrize("bf16", [True, False])
def test_gpu_has_bfloat16_or_else_float16(monkeypatch, bf16):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    assert kernels.precisions("cuda") == ("float32", "bfloat16" if bf16 else "float16")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int8", "precision must be one of float32, bfloat16, float16, got 'int8'"),
        (
            "bfloat16",
            "one of float32 on this cpu, got 'bfloat16', which wants a processor with AVX512_BF16 or AMX",
        ),
    ],
)
@pytest.mark.usefixtures("slow")
def test_precision_that_was_named_is_never_replaced(name, message):
    with pytest.raises(ValueError, match=message):
        kernels.in_precision(name, "cpu")


# What


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("choice", ["auto", "plain"])
def test_bfloat16_is_near_float32_and_a_pruned_level_is_its_head_bit_for_bit(tiny, spatial_dims, choice):
    net, x = tiny(spatial_dims).eval(), torch.rand(1, 1, *[16] * spatial_dims)
    with torch.no_grad(), kernels.use(choice):
        wanted = net.all_heads(x)
        with kernels.in_precision("bfloat16", "cpu")():
            heads = net.all_heads(x)
            for level, head, exact in zip((3, 2, 1), heads, wanted, strict=True):
                assert head.dtype is torch.bfloat16
                assert 0 < (head - exact).abs().max() < BOUND * exact.abs().max()
                assert torch.equal(prune(net, level).eval()(x), head)


@pytest.mark.parametrize("hardware", ["fast", "slow"])
def test_amp_of_monais_trainer_means_it_on_a_cpu(hardware, request, tiny, x):
    request.getfixturevalue(hardware)
    label = (x > 0.5).long()

    def train(**amp):
        net = tiny(deep_supervision=False)
        data = DataLoader(
            Dataset([{"image": i, "label": y} for i, y in zip(x, label, strict=True)]), batch_size=2
        )
        SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=1,
            train_data_loader=data,
            network=net,
            optimizer=torch.optim.SGD(net.parameters(), 0.1),
            loss_function=lambda y, label: nn.functional.cross_entropy(y, label[:, 0]),
            train_handlers=[CPUMixedPrecision()],
            **amp,
        ).run()
        return net

    wanted = tiny(deep_supervision=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=hardware == "fast"):
        logits = wanted(x)
    nn.functional.cross_entropy(logits.float(), label[:, 0]).backward()
    torch.optim.SGD(wanted.parameters(), 0.1).step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI opens autocast and a scaler of CUDA
        found = train(amp=True, amp_kwargs=BFLOAT16)
    same = [torch.equal(a, b) for a, b in zip(found.parameters(), wanted.parameters(), strict=True)]
    assert all(same)
    exact = [torch.equal(a, b) for a, b in zip(found.parameters(), train().parameters(), strict=True)]
    assert all(exact) == (hardware == "slow")


@pytest.mark.usefixtures("fast")
def test_lists_of_heads_are_float32_and_labels_stay_what_they_are(tiny, x):
    inferer = AutocastInferer(SimpleInferer(), BFLOAT16)
    assert {head.dtype for head in inferer(x, tiny())} == {torch.float32}
    assert inferer(x, lambda x: (x > 0).byte()).dtype is torch.uint8


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_bundle_trains_with_amp_on_a_cpu(balls, tmp_path):
    def heads(**amp):
        flow = workflow("liver", "train", tmp_path, **{"dataset_dir": str(balls), **TINY}, **amp)
        flow.initialize()
        batch = next(iter(flow.parser.get_parsed_content("train#dataloader")))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI makes a scaler of CUDA
            trainer = flow.parser.get_parsed_content("train#trainer")
        CPUMixedPrecision()(trainer)
        torch.manual_seed(0)
        with torch.no_grad():
            return trainer.inferer(batch["image"], trainer.network.train())

    short, long = heads(amp=True), heads(previous_training="keep")
    assert {y.dtype for y in short} == {torch.float32}
    assert all(torch.equal(y, y.bfloat16().float()) for y in short)
    assert not all(torch.equal(y, y.bfloat16().float()) for y in long)


# Levels by precision


@pytest.fixture
def data(x):
    label = torch.zeros_like(x)
    label[..., 4:12, 3:9] = 1
    return DataLoader(
        Dataset([{"image": i, "label": y} for i, y in zip(x, label, strict=True)]), batch_size=1
    )


INFERER = SlidingWindowInferer((12, 12), sw_batch_size=4, overlap=0.25)


@pytest.mark.usefixtures("fast")
def test_each_precision_is_scored_as_it_would_be_alone(tiny, data):
    net = tiny().eval()
    both = score_levels(net, data, INFERER, rounds=1, progress=False, precisions=["float32", "bfloat16"])
    assert [(s.precision, s.level) for s in both] == [
        (p, k) for p in ("float32", "bfloat16") for k in (1, 2, 3)
    ]
    alone = score_levels(net, data, INFERER, rounds=1, progress=False)
    short = score_levels(net, data, INFERER, rounds=1, progress=False, amp=True, amp_kwargs=BFLOAT16)
    for found, wanted in zip(both, alone + short, strict=True):
        same = ("level", "precision", "dice_per_case", "surface_dice", "parameters", "multiply_adds")
        assert [getattr(found, n) for n in same] == [getattr(wanted, n) for n in same]
    assert [s.dice for s in alone] != [s.dice for s in short]


@pytest.mark.usefixtures("slow")
def test_precision_that_the_processor_is_slow_in_is_not_scored(tiny, data):
    with pytest.raises(ValueError, match="precision must be one of float32 on this cpu, got 'bfloat16'"):
        score_levels(tiny().eval(), data, INFERER, progress=False, precisions=["float32", "bfloat16"])


def score(level, precision, dice, seconds):
    per_class = {f"{name}_per_class": {"a": dice} for name in ("dice", "iou", "surface_dice")}
    costs = {"dice_per_case": (dice,), "parameters": 10**level, "multiply_adds": 10**9, "peak_mib": 10.0}
    return LevelScore(level, dice, dice, dice, seconds=seconds, precision=precision, **per_class, **costs)


SCORES = [
    *(score(1, "float32", 0.80, 1.0), score(2, "float32", 0.91, 2.0), score(3, "float32", 0.915, 4.0)),
    *(score(1, "bfloat16", 0.80, 0.4), score(2, "bfloat16", 0.909, 0.8), score(3, "bfloat16", 0.93, 1.6)),
]


@pytest.mark.parametrize(
    ("tolerance", "precision"), [(0.002, "bfloat16"), (0.0005, "float32"), (0, "float32")]
)
def test_fastest_precision_within_the_tolerance_is_chosen(tolerance, precision, caplog):
    assert select_level(SCORES) == 2  # bfloat16 does not raise what float32 is compared with
    with caplog.at_level(logging.INFO, logger="monai_unetpp"):
        assert select_precision(SCORES, 2, tolerance) == precision
    assert "L2 in bfloat16: Dice 0.9090, float32 0.9100" in caplog.text
    assert "2.50x as fast" in caplog.text


def test_slower_precision_is_not_chosen_and_a_level_that_is_none_is_named():
    scores = [score(1, "float32", 0.8, 1.0), score(1, "bfloat16", 0.9, 1.5)]
    assert select_precision(scores, 1) == "float32"
    with pytest.raises(ValueError, match=r"level must be one of those in scores, 1\.\.1, got 4"):
        select_precision(scores, 4)


def test_report_has_a_row_for_each_precision(tmp_path):
    write_levels(SCORES, tmp_path, level=2, tolerance=0.01, precision="bfloat16")
    rows = list(csv.DictReader((tmp_path / "levels.csv").read_text().splitlines()))
    assert [(row["level"], row["precision"]) for row in rows] == [(str(s.level), s.precision) for s in SCORES]
    assert [float(row["seconds share"]) for row in rows] == [0.25, 0.5, 1.0, 0.1, 0.2, 0.4]
    text = (tmp_path / "levels.md").read_text()
    assert "| **L2 bfloat16** |" in text
    assert "| L2 float32 |" in text
    assert "Chosen: L2, the shallowest within 0.01 Dice of the best. Precision: bfloat16." in text
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, got 'float16'"):
        write_levels(SCORES, tmp_path / "new", level=2, tolerance=0.01, precision="float16")


# Segmenting


@pytest.fixture
def calibrated(tmp_path):
    """Weights of two levels, whose L1 was calibrated in bfloat16."""
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    torch.save(UNetPlusPlus(3, 1, 3, channels=DEEP, strides=2).state_dict(), path)
    write_calibration(path, 1, ExitScore(0.01, 0.8, 0.8, (1, 2), 0.005), "bfloat16")
    return path


def pipeline(weights, **more):
    settings = {**TINY, "channels": DEEP, "ckpt_path": str(weights), **more}
    return load_pipeline(BUNDLES / "liver", "scans", "masks", **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hardware", "settings", "precision"),
    [
        ("fast", {"level": "auto"}, "bfloat16"),
        ("fast", {"level": "auto", "precision": "float32"}, "float32"),
        ("fast", {"level": 2}, "float32"),  # it was measured at L1
        ("fast", {"level": 2, "precision": "bfloat16"}, "bfloat16"),
        ("fast", {"overlays": ["early_exit"]}, "bfloat16"),
        ("fast", {"level": "auto", "amp": False}, "float32"),
        ("slow", {"level": "auto"}, "float32"),
        ("slow", {"level": "auto", "amp": True}, "float32"),
    ],
)
def test_auto_is_what_was_calibrated_where_the_processor_is_fast_in_it(
    hardware, settings, precision, request, calibrated
):
    request.getfixturevalue(hardware)
    parts = pipeline(calibrated, **settings)
    assert parts.made_by["precision"] == precision
    with parts.autocast():
        assert torch.is_autocast_enabled("cpu") == (precision == "bfloat16")


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_weights_that_were_not_calibrated_are_computed_in_float32(deep):
    assert pipeline(deep).made_by["precision"] == "float32"


@pytest.mark.slow
@pytest.mark.usefixtures("slow")
def test_mask_says_its_precision_and_the_command_refuses_what_is_slow(calibrated, balls, out, capsys):
    scan, weights = str(balls / "imagesTr" / "RAS.nii.gz"), str(calibrated)
    sets = [word for key, value in {**TINY, "channels": DEEP}.items() for word in ("--set", key, str(value))]
    words = [
        "segment",
        "-i",
        scan,
        "-o",
        str(out),
        "--bundle",
        str(BUNDLES / "liver"),
        "--checkpoint",
        weights,
    ]
    with pytest.raises(SystemExit, match="2"):
        main([*words, *sets, "--precision", "bfloat16"])
    assert "precision must be one of float32 on this cpu, got 'bfloat16'" in capsys.readouterr().err
    assert not list(out.glob("*seg*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        [outcome] = segment(scan, out, BUNDLES / "liver", **{**TINY, "channels": DEEP, "ckpt_path": weights})
    assert outcome.state == "done"
    assert json.loads((out / "RAS_seg.json").read_text())["precision"] == "float32"  # of L2
    assert b" float32 " in nib.load(out / "RAS_seg.nii.gz").header["descrip"].item()


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_calibration_of_a_bundle_says_the_precision_and_so_does_the_exported_level(balls, tmp_path):
    settings = {"dataset_dir": str(balls), "channels": DEEP}
    run("liver", "train", tmp_path, **settings)
    more = {"precision_tolerance": 1.0, "formats": ["pt"], "level": 1, "eval_cases": "$@dataset.cases"}
    flow = run("liver", "train levels", tmp_path, **settings, **more)
    scores = flow.parser.get_parsed_content("scores")
    assert [(s.precision, s.level) for s in scores] == [
        (p, k) for p in ("float32", "bfloat16") for k in (1, 2)
    ]
    fastest = min((s for s in scores if s.level == 1), key=lambda s: s.seconds).precision
    assert read_record(tmp_path / "models" / "model.pt").precision == fastest
    assert read_record(tmp_path / "levels" / "L1" / "model.pt").precision == fastest


@pytest.mark.usefixtures("fast")
def test_early_exit_is_calibrated_in_the_precision_that_was_chosen(tiny, data):
    exact = calibrate_exit(tiny().eval(), data, INFERER, tolerance=1.0)
    short = calibrate_exit(tiny().eval(), data, INFERER, tolerance=1.0, amp=True, amp_kwargs=BFLOAT16)
    assert exact.full_dice != short.full_dice


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    net, x = tiny(3, channels=(4, 6, 8)).eval(), torch.rand(1, 1, 16, 12, 8)
    return export_level(net, 1, tmp_path_factory.mktemp("onnx"), x, formats=["onnx"])["onnx"], x


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_exported_network_takes_the_same_setting(exported, monkeypatch):
    openvino, (path, x) = pytest.importorskip("openvino"), exported
    hints, compile_model = [], openvino.Core.compile_model

    def compiled(core, path, device, settings):
        hints.append(settings["INFERENCE_PRECISION_HINT"])
        return compile_model(core, path, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", compiled)
    wanted, net = OnnxNetwork(path, "onnxruntime")(x), OnnxNetwork(path, "openvino")
    with kernels.in_precision("bfloat16", "cpu")():
        with pytest.raises(
            ValueError, match=r"precision must be float32 for .*model\.onnx in onnxruntime, got bfl"
        ):
            OnnxNetwork(path, "onnxruntime")(x)
        for _ in range(2):
            short = net(x)
    assert hints == ["f32", "bf16"]
    assert (short - wanted).abs().max() < BOUND * wanted.abs().max()


@pytest.mark.slow
@pytest.mark.usefixtures("slow")
def test_exported_network_refuses_what_the_processor_is_slow_in(exported):
    pytest.importorskip("openvino")
    path, x = exported
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="got 'bfloat16', which wants"),
    ):
        OnnxNetwork(path, "openvino")(x)
