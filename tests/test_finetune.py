# SPDX-License-Identifier: Apache-2.0
"""A training that starts from given weights: what fits is taken, and it is said what was not."""

import json
import logging
import re
import warnings

import pytest
import torch
from monai.networks.nets import BasicUNetPlusPlus, resnet10
from torch import nn
from torch.nn.functional import conv2d, conv3d

from bundles import BUNDLES, TINY_TRAINING, Payload, run, workflow
from monai_unetpp import UNetPlusPlus, from_basic_unet_plus_plus, load_network, prune
from monai_unetpp.bundle.workflows import next_arguments
from monai_unetpp.data import split_cases
from monai_unetpp.handlers import SplitRecord
from monai_unetpp.weights import read_record, sha256, start_from

FIRST = "encoder.0.convs.conv_0.conv.weight"
PREFIXES = ["", "module.", "_orig_mod.", "model.", "net.", "model.module.", "net._orig_mod.module."]


@pytest.fixture
def save(tmp_path):
    """A function that saves a network's weights and returns the path."""

    def saved(net, prefix="", nested=False):
        weights = {prefix + key: value for key, value in net.state_dict().items()}
        torch.save({"model": weights, "optimizer": {"step": 3}} if nested else weights, tmp_path / "start.pt")
        return tmp_path / "start.pt"

    return saved


@pytest.fixture
def source(tiny):
    """The network of the file, whose weights are not those of ``tiny()``."""
    return changed(tiny())


def changed(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.25)
    return net.eval()


def image(channels=1, spatial=(16, 24)):
    return torch.rand(2, channels, *spatial, generator=torch.Generator().manual_seed(1))


def heads(net, x):
    with torch.no_grad():
        return net.eval().all_heads(x)


# The same network


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "as-model"])
@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda p: p or "none")
def test_equal_network_computes_what_the_source_computes(source, tiny, save, prefix, nested):
    net = tiny()
    taken = start_from(net, save(source, prefix, nested))
    assert all(torch.equal(a, b) for a, b in zip(heads(net, image()), heads(source, image()), strict=True))
    assert (len(taken.taken), taken.new, taken.unused) == (len(net.state_dict()), {}, ())
    assert str(taken) == f"taken: {len(taken.taken)} of {len(taken.taken)} tensors"


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrapped_network_takes_them_inside(source, tiny, save, wrap):
    net = tiny()
    start_from(wrap(net), save(source))
    assert torch.equal(heads(net, image())[0], heads(source, image())[0])


def test_optimizer_that_was_made_before_trains_the_same_parameters(source, tiny, save):
    net = tiny()
    before = list(net.parameters())
    start_from(net, save(source))
    assert all(a is b for a, b in zip(before, net.parameters(), strict=True))
    assert net.training


# Other classes


def test_only_the_heads_are_new_for_other_classes(source, tiny, save):
    net, fresh = tiny(out_channels=3), tiny(out_channels=3).state_dict()
    taken = start_from(net, save(source))
    for key, value in net.state_dict().items():
        assert torch.equal(value, fresh[key] if key.startswith("heads.") else source.state_dict()[key]), key
    assert str(taken).endswith("; new: heads (out_channels 3, 2 in the file)")


# Other input channels


@pytest.mark.parametrize("block", ["conv", "residual", "dense"])
@pytest.mark.parametrize(("old", "new"), [(2, 1), (1, 3), (3, 2), (2, 3), (2, 4)])
def test_equal_channels_have_the_same_response(tiny, save, block, old, new):
    settings = {"norm": None, "block": block}
    source = changed(tiny(in_channels=old, **settings))
    net = tiny(in_channels=new, **settings)
    taken = start_from(net, save(source))
    assert taken.new == {}
    x = image()
    for a, b in zip(
        heads(net, x.expand(-1, new, -1, -1)), heads(source, x.expand(-1, old, -1, -1)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)  # sums in another order
    weight = net.state_dict()[FIRST]
    if new < old:
        assert all(torch.equal(weight[:, 0], weight[:, c]) for c in range(new))
        torch.testing.assert_close(weight[:, 0] * new, source.state_dict()[FIRST].sum(1))
    else:
        assert torch.equal(weight[:, 0], weight[:, old]) == (new > old)
    how = "averaged" if new < old else "repeated"
    assert f"encoder.0 first convolution {how} over channels (in_channels {new}, {old} in the file)" in str(
        taken
    )


def test_repeated_channels_are_scaled_by_old_over_new(tiny, save):
    source = changed(tiny(3, in_channels=1))
    net = tiny(3, in_channels=3)
    start_from(net, save(source))
    wanted = source.state_dict()[FIRST].repeat(1, 3, 1, 1, 1) / 3
    torch.testing.assert_close(net.state_dict()[FIRST], wanted, rtol=1e-6, atol=0)
    x = image(1, (8, 8, 8))
    a = conv3d(x.expand(-1, 3, -1, -1, -1), net.state_dict()[FIRST])
    torch.testing.assert_close(a, conv3d(x, source.state_dict()[FIRST]), rtol=1e-5, atol=1e-6)


def test_both_ways_into_a_backbone_are_adapted(save):
    settings = {"out_channels": 2, "channels": (8, 8, 8), "strides": 2, "encoder": "resnet10"}
    source = changed(UNetPlusPlus(2, in_channels=3, **settings))
    net = UNetPlusPlus(2, in_channels=1, **settings)
    taken = start_from(net, save(source))
    assert (len(taken.adapted), taken.new) == (2, {})
    stem = next(key for key in taken.adapted if key.startswith("encoder.1."))
    a = conv2d(image(), net.state_dict()[stem])
    b = conv2d(image().expand(-1, 3, -1, -1), source.state_dict()[stem])
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# Another depth


@pytest.mark.parametrize("norm", [("instance", {"affine": True}), "batch"], ids=["instance", "batch"])
def test_deeper_network_has_the_old_one_inside(tiny, save, norm):
    source = changed(tiny(norm=norm))
    net = tiny(channels=(4, 6, 8, 10, 12), norm=norm)
    taken = start_from(net, save(source))
    assert {tuple(key.split(".")[:2]) for key in taken.new} == {
        *(("encoder", "4"), ("heads", "3")),
        *(("nodes", f"x_{4 - j}_{j}") for j in range(1, 5)),
    }
    assert set(taken.new.values()) == {"not in the file"}
    x = image(1, (32, 32))
    for level in (1, 2, 3):
        assert torch.equal(prune(net.eval(), level)(x), heads(source, x)[3 - level])


def test_deeper_network_of_other_classes_names_its_heads(source, tiny, save):
    taken = start_from(tiny(channels=(4, 6, 8, 10, 12), out_channels=3), save(source))
    assert "heads.3 (not in the file)" in str(taken)
    assert "heads.0, heads.1, heads.2 (out_channels 3, 2 in the file)" in str(taken)


def test_shallower_network_is_a_level_of_the_old_one(source, tiny, save):
    net = tiny(channels=(4, 6, 8))
    taken = start_from(net, save(source))
    assert torch.equal(heads(net, image())[0], prune(source, 2)(image()))
    assert taken.new == {}
    assert str(taken).endswith("not used: encoder.3, nodes.x_2_1, nodes.x_1_2, nodes.x_0_3, heads.2")


def test_file_of_one_level_leaves_the_other_heads_new(source, tiny, save):
    net = tiny()
    taken = start_from(net, save(prune(source, 2)))
    assert torch.equal(heads(net, image())[-2], heads(source, image())[-2])
    assert {"heads.0.weight", "heads.2.weight"} <= taken.new.keys()
    assert "heads.1.weight" in taken.taken


def test_network_of_one_head_takes_its_own(source, tiny, save):
    net = tiny(deep_supervision=False)
    taken = start_from(net, save(source))
    assert torch.equal(net.eval()(image()), heads(source, image())[0])
    assert str(taken).endswith("not used: heads.0, heads.1")


# Other widths


def test_rows_of_other_widths_are_new_and_named(source, tiny, save):
    net = tiny(channels=(4, 6, 9, 10))
    fresh = {key: value.clone() for key, value in net.state_dict().items()}
    taken = start_from(net, save(source))
    assert "part of nodes.x_1_1" in str(taken)  # its upsampling reads row 2
    assert "encoder.2, " in str(taken)
    for key, value in net.state_dict().items():
        assert torch.equal(value, fresh[key] if key in taken.new else source.state_dict()[key]), key
    row = [key for key in fresh if key.startswith(("encoder.2.", "nodes.x_2_"))]
    assert set(row) <= taken.new.keys()
    # a bias of equal size is of no use without its convolution
    assert taken.new["encoder.3.convs.conv_0.conv.bias"] == "other widths"


def test_network_without_norm_takes_the_convolutions_of_one_with_norm(source, tiny, save):
    taken = start_from(tiny(norm=None), save(source))
    assert taken.new == {}
    assert all(".adn.N." in key for key in taken.unused)


# MONAI's BasicUNetPlusPlus


@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "prefixed"])
def test_weights_of_basic_unet_plus_plus_are_taken(save, prefix):
    torch.manual_seed(0)
    theirs = BasicUNetPlusPlus(2, 1, 2, (4, 4, 8, 16, 32, 4), deep_supervision=True).eval()
    net = UNetPlusPlus(**from_basic_unet_plus_plus(theirs).spec.arguments())
    taken = start_from(net, save(theirs, prefix))
    assert (taken.new, taken.unused) == ({}, ())
    x = image(1, (32, 32))
    with torch.no_grad():
        for ours, wanted in zip(heads(net, x), reversed(theirs(x)), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4)  # kernels of ours


# Errors


def test_weights_of_another_network_are_refused_by_their_keys(tiny, save):
    other = resnet10(spatial_dims=2, n_input_channels=1, num_classes=2)
    with pytest.raises(
        ValueError,
        match=r"file must hold weights of a UNetPlusPlus, .*start\.pt has none: its keys are 'conv1\.weight'",
    ):
        start_from(tiny(), save(other))
    torch.save({}, save(other))
    with pytest.raises(ValueError, match=r"has none: it is empty\."):
        start_from(tiny(), save(nn.Identity()))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"channels": (5, 7, 9, 11)}, r"fits spatial_dims 2 and channels \[5, 7, 9, 11\]"),
        ({"spatial_dims": 3}, r"fits spatial_dims 3 and channels \[4, 6, 8, 10\]"),
    ],
    ids=["widths", "spatial_dims"],
)
def test_weights_of_which_nothing_fits_are_refused_and_change_nothing(source, tiny, save, arguments, says):
    net = tiny(**arguments)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    has = (
        r", .*start\.pt has spatial_dims 2 and channels \[4, 6, 8, 10\]: build the network with the channels"
    )
    with pytest.raises(ValueError, match=says + has):
        start_from(net, save(source))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def scripted(_, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Conv2d(1, 2, 3)), path)


def exported(_, path):
    torch.export.save(torch.export.export(nn.Conv2d(1, 2, 3), (torch.rand(1, 1, 8, 8),)), path)


def truncated(net, path):
    torch.save(net.state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])


FILES = {
    "torchscript": ("a.pt", scripted, r"a\.pt is TorchScript, not weights: name the file"),
    "exported": ("a.pt2", exported, r"a\.pt2 is a torch\.export program, not weights"),
    "onnx": ("a.onnx", lambda _, path: path.write_bytes(b"\x08\x07"), r"a\.onnx is an ONNX network, not"),
    "damaged": ("a.pt", truncated, r"a\.pt cannot be read as a checkpoint, it may be damaged"),
    "text": ("a.pt", lambda _, path: path.write_text("weights"), r"a\.pt is refused: a checkpoint may hold"),
    "no-weights": ("a.pt", lambda _, path: torch.save({"epoch": 3}, path), r"must hold weights, alone or as"),
    "list": ("a.pt", lambda _, path: torch.save([1], path), r"a\.pt holds no weights by name, but a list"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "write", "says"), FILES.values(), ids=FILES)
def test_file_without_weights_is_refused(tiny, tmp_path, name, write, says):
    write(tiny(), tmp_path / name)
    with pytest.raises(ValueError, match=says):
        start_from(tiny(), tmp_path / name)


def test_code_in_a_file_is_not_run(tiny, tmp_path):
    torch.save({"model": Payload(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="is refused"):
        start_from(tiny(), tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_missing_file_and_other_networks_are_errors(source, tiny, save, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.pt"):
        start_from(tiny(), tmp_path / "none.pt")
    with pytest.raises(TypeError, match="network must be a UNetPlusPlus, got Conv2d"):
        start_from(nn.Conv2d(1, 1, 1), save(source))


# Training


def first_loss(flow):
    return flow.parser.get_parsed_content("train#trainer").state.metrics["train_loss"]


@pytest.mark.slow
def test_training_starts_from_the_weights_and_records_it(trained, balls, tmp_path, caplog):
    start = trained / "models" / "model.pt"
    settings = {"dataset_dir": str(balls), "max_epochs": 1}
    scratch = first_loss(run("liver", "train", tmp_path / "scratch", **settings))
    with caplog.at_level(logging.INFO, "monai_unetpp"):
        flow = run("liver", "train", tmp_path / "tuned", finetune=str(start), **settings)
    assert first_loss(flow) < scratch
    assert re.search(r"The training starts from .*model\.pt: taken: (\d+) of \1 tensors\.", caplog.text)
    wanted = {"file": "model.pt", "sha256": sha256(start)}
    assert read_record(tmp_path / "tuned" / "models" / "model.pt").initial_weights == wanted
    assert "initial_weights" not in json.loads((tmp_path / "scratch/models/model.json").read_text())

    caplog.clear()
    with caplog.at_level(logging.INFO, "monai_unetpp"):
        again = {**settings, "max_epochs": 2, "resume": True, "learning_rate": 0.02}
        run("liver", "train", tmp_path / "tuned", finetune=str(tmp_path / "gone.pt"), **again)
    assert "gone.pt is not read: a resumed training has the weights of its checkpoint" in caplog.text
    assert "The training starts from" not in caplog.text
    checkpoint = torch.load(tmp_path / "tuned/models/checkpoint_epoch=2.pt", weights_only=True)
    assert checkpoint["best"]["initial_weights"] == wanted
    assert read_record(tmp_path / "tuned" / "models" / "model.pt").initial_weights == wanted


def test_weights_that_were_trained_on_what_is_held_out_are_a_warning(source, save, tmp_path, caplog):
    """As those of another fold are, whose scores would be too good."""
    cases = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in range(6)]
    first = SplitRecord(split_cases(cases, 0.2, 0, folds=3, fold=0), folds=3, fold=0)
    torch.save({"split": first.state_dict()}, tmp_path / "checkpoint_epoch=1.pt")
    start = save(source)
    for fold in (0, 1):
        caplog.clear()
        split = split_cases(cases, 0.2, 0, folds=3, fold=fold)
        SplitRecord(split, folds=3, fold=fold, initial_weights=str(start))
        assert ("were trained on and would be held out now" in caplog.text) == (fold == 1)
    assert "Train with --folds 3 --fold 0, the seed and the data set of that training" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["liver", "lung_nodule"])
def test_initial_weights_are_those_of_the_file(bundle, balls, tmp_path):
    torch.manual_seed(5)
    torch.save(UNetPlusPlus(3, 1, 3, channels=(4, 8), strides=2).state_dict(), tmp_path / "start.pt")
    settings = {**TINY_TRAINING, "dataset_dir": str(balls), "out_channels": 3}
    flow = workflow(bundle, "train", tmp_path, finetune=str(tmp_path / "start.pt"), **settings)
    flow.initialize()
    weights = flow.parser.get_parsed_content("network").state_dict()
    wanted = torch.load(tmp_path / "start.pt", weights_only=True)
    assert all(torch.equal(value, wanted[key]) for key, value in weights.items())
    assert load_network(UNetPlusPlus(3, 1, 3, channels=(4, 8), strides=2), tmp_path / "start.pt").level == 1


def test_next_commands_do_not_repeat_it():
    assert next_arguments([], {"finetune": "start.pt", "dataset_dir": "d"}) == "--dataset_dir d"


@pytest.mark.parametrize("name", ["train", "multi_gpu_train"])
def test_every_way_to_train_takes_them(name):
    for bundle in ("liver", "lung_nodule"):
        assert "@initial_weights" in json.loads((BUNDLES / bundle / f"{name}.json").read_text())["initialize"]
