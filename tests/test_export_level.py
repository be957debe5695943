# SPDX-License-Identifier: Apache-2.0
"""One level written in every form, each checked before it is kept, and run by what runs it."""

import sys

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.inferers import SlidingWindowInferer
from processes import python

from bundles import BUNDLES
from monai_unetpp import export, extras, load_network, prune
from monai_unetpp.export import FORMATS, OnnxNetwork, check_formats, example_window, export_level

onnx = pytest.importorskip("onnx")
quantization = pytest.importorskip("onnxruntime.quantization")
TOLERANCE = {"rtol": 0, "atol": 1e-4}
RUNTIMES = ["onnxruntime", "openvino"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def net(tiny):
    return tiny(3, channels=(4, 6, 8)).eval()


@pytest.fixture(scope="module")
def window():
    return torch.rand(1, 1, 16, 12, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def exported(net, window, tmp_path_factory):
    return export_level(net, 1, tmp_path_factory.mktemp("levels") / "L1", window)


# Writing


def test_every_form_gives_the_head_of_the_full_network(net, exported, tiny):
    assert list(exported) == list(FORMATS)
    assert len({path.parent for path in exported.values()}) == 1
    assert sorted(p.name for p in exported["pt"].parent.iterdir()) == [
        "model.onnx", "model.pt", "model.pt2", "model.ts",
    ]  # fmt: skip
    x = torch.rand(2, 1, 11, 9, 10)  # other sizes than those it was written with
    head = net.all_heads(x)[-1]
    assert torch.equal(load_network(tiny(3, channels=(4, 6, 8)), exported["pt"])(x), head)
    torch.testing.assert_close(torch.jit.load(exported["ts"])(x), head, **TOLERANCE)
    torch.testing.assert_close(torch.export.load(exported["pt2"]).module()(x), head, **TOLERANCE)
    torch.testing.assert_close(OnnxNetwork(exported["onnx"], "onnxruntime")(x), head, **TOLERANCE)


def test_network_is_left_as_it_was(tiny, window, tmp_path):
    net = tiny(3, channels=(4, 6, 8))
    export_level(net, 1, tmp_path, window, formats=["pt"])
    assert (net.level, net.training, net.depth) == (2, True, 2)


@pytest.mark.parametrize("suffix", ["pt", "ts"])
def test_what_differs_from_the_full_network_is_not_kept(net, window, tmp_path, monkeypatch, suffix):
    write = export._WRITE[suffix]

    def write_another(pruned, program, path):
        for parameter in pruned.parameters():
            parameter.data += 0.1
        write(pruned, program, path)

    monkeypatch.setitem(export._WRITE, suffix, write_another)
    with pytest.raises(RuntimeError, match=rf"model\.{suffix} was not kept: its logits are up to"):
        export_level(net, 2, tmp_path / "L2", window, formats=[*{"pt", "ts"} - {suffix}, suffix])
    assert list((tmp_path / "L2").iterdir()) == []


def test_file_that_is_there_is_overwritten_on_request_only(net, window, tmp_path):
    (tmp_path / "model.ts").write_text("not ours")
    with pytest.raises(FileExistsError, match=r"model\.ts exists"):
        export_level(net, 1, tmp_path, window, formats=["pt", "ts"])
    assert [p.name for p in tmp_path.iterdir()] == ["model.ts"]
    export_level(net, 1, tmp_path, window, formats=["pt", "ts"], overwrite=True)
    assert torch.jit.load(tmp_path / "model.ts")(window).shape == (1, 2, 16, 12, 8)


FULL_DISK = """
import resource, signal, sys, torch
from monai_unetpp import UNetPlusPlus, export
from monai_unetpp.export import export_level
net = UNetPlusPlus(2, 1, 2, channels=(4, 6, 8), strides=2)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))  # enough for the weights alone
write = export._WRITE["ts"]
export._WRITE["ts"] = lambda *a: (print("TorchScript"), write(*a))
try:
    export_level(net, 2, sys.argv[1], torch.rand(1, 1, 16, 16), formats=["pt", "ts"])
except Exception as error:
    print(type(error).__name__)
"""


def test_of_no_formats_nothing_is_written(net, window, tmp_path):
    source = BUNDLES / "liver/weights/slices.pt"  # weights with a record
    assert export_level(net, 1, tmp_path / "L1", window, formats=[], source=source) == {}
    assert not (tmp_path / "L1").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of a file, which Windows cannot")
def test_full_disk_leaves_no_file_of_any_form(tmp_path):
    done = python("-c", FULL_DISK, tmp_path / "L2")
    assert done.stdout.split() in (["TorchScript", "OSError"], ["TorchScript", "RuntimeError"]), done.stderr
    assert list((tmp_path / "L2").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": 3}, "level must be one of the network's heads, 1, 2, got 3"),
        ({"formats": ["pt", "caffe"]}, "formats must be some of pt, ts, pt2, onnx, got 'caffe'"),
    ],
)
def test_what_cannot_be_exported_is_said(net, window, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_level(net, **{"level": 1, "directory": tmp_path, "example": window, **arguments})


def test_package_that_is_lacking_is_named_with_its_extra(monkeypatch, exported):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ModuleNotFoundError, match=r'onnx is not installed: pip install "monai-unetpp\[export\]"'
    ):
        check_formats(["pt", "onnx"])
    check_formats(["pt", "ts", "pt2"])
    with pytest.raises(ModuleNotFoundError, match=r"openvino is not installed: .*\[openvino\]"):
        OnnxNetwork(exported["onnx"], "openvino")


def test_example_is_the_middle_of_the_first_case():
    image = MetaTensor(torch.arange(5 * 6 * 3.0).reshape(1, 5, 6, 3))
    window = example_window(DataLoader(Dataset([{"image": image}])), (3, 4, 5))
    assert type(window) is torch.Tensor
    assert torch.equal(window[0, :, :, :, 1:4], image[:, 1:4, 1:5, :].as_tensor())
    assert window.shape == (1, 1, 3, 4, 5)


def test_example_for_a_network_of_two_dimensions_is_a_slice():
    image = MetaTensor(torch.arange(5 * 6 * 3.0).reshape(1, 5, 6, 3))
    window = example_window(DataLoader(Dataset([{"image": image}])), (3, 4, 1))
    assert torch.equal(window[0], image[:, 1:4, 1:5, 1].as_tensor())


# What quantisers and other runtimes look for


KINDS = {
    "2D-plain": (2, {}),
    "3D-residual-batch": (3, {"block": "residual", "norm": "batch"}),
    "2D-dense-pixelshuffle": (2, {"block": "dense", "upsample": "pixelshuffle"}),
}


@pytest.mark.parametrize(("spatial_dims", "arguments"), KINDS.values(), ids=KINDS)
def test_weights_of_convolutions_are_initialisers(tiny, tmp_path, spatial_dims, arguments):
    net = tiny(spatial_dims, channels=(4, 6, 8), **arguments)
    path = export_level(net, 2, tmp_path, torch.rand(1, 1, *[16] * spatial_dims), ["onnx"])["onnx"]
    graph = onnx.load(path).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    found = [shapes[node.input[1]] for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    wanted = [m.weight.shape for m in prune(net, 2).modules() if hasattr(m, "transposed")]
    assert sorted(found) == sorted(map(tuple, wanted))  # none is split, joined or computed


def test_weights_of_convolutions_are_parameters_of_the_program(exported):
    program = torch.export.load(exported["pt2"])
    parameters = set(program.graph_signature.inputs_to_parameters)
    convolutions = [node for node in program.graph.nodes if ".conv" in str(node.target)]
    assert len(convolutions) == 8  # L1: two nodes of two in column 0, one in column 1, one up, one head
    assert {node.args[1].name for node in convolutions} <= parameters


class Windows(quantization.CalibrationDataReader):
    """Windows to find the ranges of values with."""

    def __init__(self, count):
        self.windows = iter(torch.rand(count, 1, 1, 16, 12, 8, generator=torch.Generator().manual_seed(3)))

    def get_next(self):
        window = next(self.windows, None)
        return None if window is None else {"image": window.numpy()}


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_exported_network_is_quantised(exported, window, tmp_path, kind, caplog):
    path = str(tmp_path / "small.onnx")
    with caplog.at_level("CRITICAL"):
        if kind == "static":
            quantization.quantize_static(
                str(exported["onnx"]), path, Windows(8), quant_format=quantization.QuantFormat.QDQ
            )
        else:
            quantization.quantize_dynamic(str(exported["onnx"]), path)
    graph = onnx.load(path).graph
    stored = {
        weight.name
        for weight in graph.initializer
        if weight.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    }
    assert sum(len(weight.dims) == 5 for weight in graph.initializer if weight.name in stored) >= 7
    wanted = OnnxNetwork(exported["onnx"], "onnxruntime")(window)
    apart = OnnxNetwork(path, "onnxruntime")(window) - wanted
    assert 0 < apart.norm() / wanted.norm() < 0.1


# Running


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtime_segments_as_the_network_does(net, exported, tiny, runtime):
    pytest.importorskip(runtime)
    loaded = load_network(tiny(3, channels=(4, 6, 8)), exported["onnx"], runtime=runtime)
    assert loaded.runtime == runtime
    inferer = SlidingWindowInferer((8, 8, 8), sw_batch_size=3, overlap=0.5)
    x = MetaTensor(torch.rand(1, 1, 13, 9, 8))
    with torch.no_grad():
        wanted = inferer(x, lambda window: net.all_heads(window)[-1])
        torch.testing.assert_close(inferer(x, loaded), wanted, **TOLERANCE)


SIGNAL_AFTER_TWO = """
import signal, sys, torch
from monai_unetpp.export import OnnxNetwork
nets = [OnnxNetwork(sys.argv[1], "openvino") for _ in range(2)]
while nets:
    nets.pop(0)
signal.signal(signal.SIGINT, lambda *_: print("arrived"))
signal.raise_signal(signal.SIGINT)
"""


def test_signals_arrive_after_exported_networks_have_gone(exported):
    """OpenVINO leaves the thread without a stack for signals when each network has a ``Core`` of its own."""
    pytest.importorskip("openvino")
    done = python("-c", SIGNAL_AFTER_TWO, exported["onnx"])
    assert (done.returncode, done.stdout) == (0, "arrived\n"), done.stderr


def test_runtime_that_is_installed_is_taken(exported):
    pytest.importorskip("openvino")
    assert OnnxNetwork(exported["onnx"]).runtime == "openvino"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_damaged_file_is_named(tmp_path, tiny, runtime):
    pytest.importorskip(runtime)
    (tmp_path / "model.onnx").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match=rf"model\.onnx cannot be read by {runtime}"):
        load_network(tiny(), tmp_path / "model.onnx", runtime=runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("arguments", [{"out_channels": 3}, {"in_channels": 2}, {"spatial_dims": 2}])
def test_exported_network_of_another_task_is_named(exported, tiny, runtime, arguments):
    pytest.importorskip(runtime)
    other = tiny(**{"spatial_dims": 3, "channels": (4, 6, 8), **arguments})
    with pytest.raises(
        ValueError, match=r"model\.onnx does not fit the network: it has 1 in_channels, 2 out"
    ):
        load_network(other, exported["onnx"], runtime=runtime)


def test_exported_network_has_one_level_and_a_known_runtime(exported, tiny, tmp_path):
    with pytest.raises(ValueError, match=r"level must be left out with .*model\.onnx"):
        load_network(tiny(), exported["onnx"], level=1)
    with pytest.raises(ValueError, match="runtime must be one of openvino, onnxruntime, got 'tensorrt'"):
        load_network(tiny(3), exported["onnx"], runtime="tensorrt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_network(tiny(), tmp_path / "gone.onnx")
