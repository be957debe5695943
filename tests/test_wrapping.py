# SPDX-License-Identifier: Apache-2.0
"""Compiled, parallel and averaged networks, and weights whose keys have the prefix of one."""

import re

import pytest
import torch
from ignite.engine import Engine
from monai.networks.nets import BasicUNetPlusPlus
from processes import apart
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from bundles import run
from monai_unetpp import (
    EarlyExitInferer,
    UNetPlusPlus,
    from_basic_unet_plus_plus,
    load_network,
    prune,
    prune_state_dict,
)
from monai_unetpp.handlers import CheckpointLoader, CheckpointSaver
from monai_unetpp.levels import calibrate_exit, score_levels
from monai_unetpp.weights import prune_weights


def compiled(net):
    return torch.compile(net, backend="eager")


def averaged(net):
    """An average over two networks, the second of which has other weights."""
    model = AveragedModel(net)
    model.update_parameters(net)
    return model


WRAPPERS = {
    "compiled": compiled,
    "parallel": DataParallel,
    "averaged": averaged,
    "compiled-parallel": lambda net: compiled(DataParallel(net)),
    "parallel-compiled": lambda net: DataParallel(compiled(net)),
    "averaged-compiled": lambda net: averaged(compiled(net)),
    "compiled-averaged": lambda net: compiled(averaged(net)),
}
PREFIXES = ["", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model.net.module."]
EVERY_WRAPPER = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
EVERY_PREFIX = pytest.mark.parametrize("prefix", PREFIXES, ids=lambda p: p or "none")


@pytest.fixture(scope="module", autouse=True)
def _compilers_are_forgotten():
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def net(tiny):
    """A network whose weights are not those of ``tiny()``."""
    net = tiny().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.25)
    return net


@pytest.fixture(scope="module")
def x():
    return torch.rand(1, 1, 16, 24, generator=torch.Generator().manual_seed(1))


def prefixed(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


def engine():
    made = Engine(lambda *_: None)
    made.state.metrics = {}
    return made


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Weights in a file


@EVERY_PREFIX
@pytest.mark.parametrize("nested", [False, True], ids=["alone", "as-model"])
def test_weights_with_a_prefix_load(net, x, tiny, tmp_path, prefix, nested):
    weights = prefixed(prefix, net.state_dict())
    torch.save({"model": weights} if nested else weights, tmp_path / "model.pt")
    loaded = load_network(tiny(), tmp_path / "model.pt", level=2)
    assert torch.equal(loaded(x), net.all_heads(x)[-2])


@EVERY_WRAPPER
def test_weights_of_a_wrapped_network_load(net, x, tiny, tmp_path, wrap):
    torch.save(wrap(net).state_dict(), tmp_path / "model.pt")
    assert torch.equal(load_network(tiny(), tmp_path / "model.pt")(x), net(x))


@EVERY_WRAPPER
def test_wrapped_network_takes_plain_weights(net, x, tiny, tmp_path, wrap):
    torch.save(net.state_dict(), tmp_path / "model.pt")
    wrapped = wrap(tiny())
    loaded = load_network(wrapped, tmp_path / "model.pt", level=1)
    assert loaded is wrapped
    assert not loaded.training
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(x), net.all_heads(x)[-1], rtol=0, atol=1e-4
        )  # compiled: plain torch


@EVERY_PREFIX
def test_weights_of_one_level_with_a_prefix_load(net, x, tiny, tmp_path, prefix):
    torch.save(prefixed(prefix, prune_state_dict(net.state_dict(), 2)), tmp_path / "model.pt")
    loaded = load_network(compiled(tiny()), tmp_path / "model.pt")
    assert loaded.depth == 2
    assert torch.equal(loaded(x), net.all_heads(x)[-2])


@EVERY_PREFIX
def test_weights_with_a_prefix_are_pruned(net, tmp_path, prefix):
    torch.save(prefixed(prefix, net.state_dict()), tmp_path / "model.pt")
    counts = prune_weights(tmp_path / "model.pt", 1, tmp_path / "small.pt")
    assert same(torch.load(tmp_path / "small.pt"), prune(net, 1).state_dict())
    assert counts == tuple(sum(p.numel() for p in n.state_dict().values()) for n in (prune(net, 1), net))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: prefixed("module._orig_mod.", {k: v for k, v in w.items() if "heads.2" not in k}),
            "does not fit the network without the prefix 'module._orig_mod.' of its keys: "
            "heads.2.weight is missing in the file",
        ),
        (
            lambda w: prefixed("backbone.", w),
            "does not fit the network: all its keys begin with 'backbone.': enc",
        ),
        (
            lambda w: {**prefixed("module.", w), "loss.weight": torch.ones(1)},
            "its keys are 'module.encoder.0.",
        ),
        (lambda _: {"module.n": torch.ones(1)}, "all its keys begin with 'module.'"),
    ],
    ids=["less", "unknown", "not-all", "other"],
)
def test_weights_that_do_not_fit_without_their_prefix_are_named(net, tiny, tmp_path, change, message):
    torch.save(change(net.state_dict()), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_network(tiny(), tmp_path / "model.pt")


# Training checkpoints


@EVERY_PREFIX
@pytest.mark.parametrize("wrap", [lambda net: net, *WRAPPERS.values()], ids=["plain", *WRAPPERS])
def test_checkpoint_with_a_prefix_loads_into_a_network(net, tiny, tmp_path, prefix, wrap):
    torch.save({"model": prefixed(prefix, net.state_dict())}, tmp_path / "model.pt")
    inner = tiny()
    wrapped = wrap(inner)
    loader = CheckpointLoader(str(tmp_path / "model.pt"), {"model": wrapped})
    loader(engine())
    assert loader.load_dict == {"model": wrapped}
    assert same(prune(wrapped, 2).state_dict(), prune_state_dict(net.state_dict(), 2))


def test_average_is_resumed_with_its_count(tiny, tmp_path):
    model = averaged(tiny())
    model.update_parameters(tiny())
    torch.save({"model": model.state_dict()}, tmp_path / "model.pt")
    resumed = AveragedModel(tiny())
    CheckpointLoader(str(tmp_path / "model.pt"), {"model": resumed})(engine())
    assert resumed.n_averaged == 2


def test_network_that_has_a_prefix_of_its_own_keeps_it(tmp_path):
    target, saved = nn.ModuleDict({"net": nn.Linear(2, 2)}), nn.ModuleDict({"net": nn.Linear(2, 2)})
    torch.save({"model": saved.state_dict()}, tmp_path / "model.pt")
    CheckpointLoader(str(tmp_path / "model.pt"), {"model": target})(engine())
    assert same(target.state_dict(), saved.state_dict())


@EVERY_WRAPPER
def test_saved_weights_of_a_wrapped_network_have_no_prefix(tiny, tmp_path, wrap):
    wrapped = wrap(tiny())
    CheckpointSaver(
        save_dir=str(tmp_path), save_dict={"model": wrapped}, save_final=True, final_filename="model.pt"
    ).attach(trainer := engine())
    trainer.run([0], max_epochs=1)
    saved = torch.load(tmp_path / "model.pt")
    saved.pop("n_averaged", None)
    shared = "module." if any(isinstance(part, AveragedModel) for part in wrapped.modules()) else ""
    inside = "_orig_mod." if next(iter(saved)).startswith("module._orig_mod.") else ""
    assert same(saved, prefixed(shared + inside, tiny().state_dict()))


# Wrapped networks


@EVERY_WRAPPER
def test_wrapped_network_is_pruned(net, x, wrap):
    small = prune(wrap(net), 2)
    assert type(small) is UNetPlusPlus
    assert torch.equal(small(x), net.all_heads(x)[-2])


def test_average_is_pruned_and_not_the_network_it_is_taken_of(tiny, net):
    model = AveragedModel(tiny())
    for other in (tiny(), net):
        model.update_parameters(other)
    name = "heads.0.weight"
    mean = (tiny().state_dict()[name] + net.state_dict()[name]) / 2
    torch.testing.assert_close(prune(model, 1).state_dict()[name], mean)


def prune_in_ddp(folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=0, world_size=1)
    net, x = UNetPlusPlus(2, 1, 2, channels=(4, 6, 8, 10), strides=2).eval(), torch.rand(1, 1, 16, 24)
    assert torch.equal(prune(DistributedDataParallel(net), 1)(x), net.all_heads(x)[-1])


def test_ddp_network_is_pruned(tmp_path):
    apart(prune_in_ddp, str(tmp_path))


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (
            lambda net: nn.ModuleDict({"net": net}),
            "net must be a UNetPlusPlus, got ModuleDict: pass net.net.",
        ),
        (lambda _: nn.Linear(1, 1), "net must be a UNetPlusPlus, got Linear."),
        (lambda _: None, "net must be a UNetPlusPlus, got NoneType."),
    ],
    ids=["contains", "other", "none"],
)
def test_what_is_no_network_of_ours_is_not_pruned(net, wrap, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        prune(wrap(net), 1)


@EVERY_PREFIX
def test_state_dict_with_a_prefix_is_pruned(net, prefix):
    weights = prune_state_dict(prefixed(prefix, net.state_dict()), 2)
    assert same(weights, prune(net, 2).state_dict())


def test_compiled_basic_unet_plus_plus_is_converted():
    theirs = BasicUNetPlusPlus(2, 1, 2, (4, 4, 8, 16, 32, 4), deep_supervision=True).eval()
    converted = from_basic_unet_plus_plus(compiled(theirs))
    assert same(converted.state_dict(), from_basic_unet_plus_plus(theirs).state_dict())


@EVERY_WRAPPER
def test_levels_of_a_wrapped_network_are_scored(net, wrap):
    data = [{"image": torch.rand(1, 1, 16, 16), "label": torch.ones(1, 1, 16, 16)}]
    settings = {"inferer": lambda image, network: network(image), "window": (16, 16), "rounds": 1}
    scores, wanted = (score_levels(n, data, progress=False, **settings) for n in (wrap(net), net))
    assert [s.dice for s in scores] == [s.dice for s in wanted]
    assert [s.parameters for s in scores] == [s.parameters for s in wanted]


@EVERY_WRAPPER
def test_early_exit_of_a_wrapped_network(net, x, wrap):
    inferer = EarlyExitInferer(threshold=0.0, roi_size=(16, 16))
    data = [{"image": x, "label": torch.ones(1, 1, 16, 24)}]
    with torch.no_grad():
        assert torch.equal(inferer(x, wrap(net)), inferer(x, net))
        found, wanted = (calibrate_exit(n, data, inferer) for n in (wrap(net), net))
    assert found == wanted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the compiler about MetaTensor
def test_bundle_trained_through_the_compiler_reads_its_own_weights(balls, tmp_path):
    network = {"_target_": "torch.compile", "model": "$@network_def.to(@device)", "backend": "eager"}
    settings = {"dataset_dir": str(balls), "network": network}
    run("liver", "train", tmp_path, **settings)
    weights = torch.load(tmp_path / "models" / "model.pt")
    assert all(key.startswith(("encoder.", "nodes.", "heads.")) for key in weights)
    saved = {f"_orig_mod.{key}": value for key, value in weights.items()}  # as torch itself saves it
    torch.save(saved, tmp_path / "compiled.pt")
    with torch.compiler.set_stance("force_eager"):  # wrapped all the same
        run("liver", "train evaluate", tmp_path, ckpt_path=str(tmp_path / "compiled.pt"), **settings)
    torch.save(weights, tmp_path / "plain.pt")
    plain = {"dataset_dir": str(balls), "ckpt_path": str(tmp_path / "plain.pt")}
    run("liver", "train evaluate", tmp_path, output_dir=str(tmp_path / "wanted"), **plain)
    name = "val_mean_dice_raw.csv"
    assert (tmp_path / "eval" / name).read_text() == (tmp_path / "wanted" / name).read_text()
    with torch.compiler.set_stance("force_eager"):
        run("liver", "train", tmp_path, resume=True, max_epochs=3, **settings)
    assert (tmp_path / "models" / "checkpoint_epoch=3.pt").exists()
