# SPDX-License-Identifier: Apache-2.0
"""Weights in files: of the whole network, of one level, of a checkpoint of an epoch."""

import sys

import pytest
import torch
from processes import python

from bundles import Payload
from monai_unetpp import load_network, prune, prune_state_dict
from monai_unetpp.__main__ import main
from monai_unetpp.files import atomic_write
from monai_unetpp.weights import prune_weights

pytestmark = pytest.mark.slow


def changed(net):
    """The network in evaluation with other weights than ``tiny`` gives every time."""
    for parameter in net.parameters():
        parameter.data *= 1.1
    return net.eval()


@pytest.fixture(scope="module")
def net(tiny):
    return changed(tiny())


@pytest.fixture(scope="module")
def x():
    return torch.rand(1, 1, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def path(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


# Loading


@pytest.mark.parametrize("level", [None, 1, 2, 3])
def test_whole_weights_compute_the_level_that_is_asked_for(net, x, path, tiny, level):
    loaded = load_network(tiny(), path, level)
    assert loaded.level == (level or 3)
    assert not loaded.training
    assert torch.equal(loaded(x), net.all_heads(x)[-(level or 3)])


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("skips", ["dense", "short", "long"])
def test_pruned_weights_make_the_network_their_own_level(x, tmp_path, tiny, level, skips):
    net = changed(tiny(skips=skips))
    with atomic_write(tmp_path / "full.pt") as part:
        torch.save(net.state_dict(), part)
    kept, of = prune_weights(tmp_path / "full.pt", level, tmp_path / "small.pt", skips)
    assert kept < of
    for asked in (None, level):
        loaded = load_network(tiny(skips=skips), tmp_path / "small.pt", asked)
        assert loaded.depth == level
        assert torch.equal(loaded(x), net.all_heads(x)[-level])


def test_one_level_is_the_whole_network_not_a_pruned_one(x, tmp_path, tiny):
    """Its levels, of which there is one, can be scored."""
    net = changed(tiny(channels=(4, 6)))
    torch.save(net.state_dict(), tmp_path / "model.pt")
    loaded = load_network(tiny(channels=(4, 6)), tmp_path / "model.pt")
    assert loaded.deep_supervision
    assert torch.equal(loaded(x), net.all_heads(x)[0])


def test_checkpoint_of_an_epoch_holds_the_weights_as_model(net, x, tmp_path, tiny):
    torch.save({"model": net.state_dict(), "trainer": {"epoch": 3}}, tmp_path / "epoch.pt")
    assert torch.equal(load_network(tiny(), tmp_path / "epoch.pt")(x), net(x))


def test_pruned_weights_train_on(path, tmp_path, tiny):
    prune_weights(path, 2, tmp_path / "small.pt")
    small = load_network(tiny(), tmp_path / "small.pt").train()
    batch = torch.rand(2, 1, 16, 16)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (small(batch) - batch).square().mean()
        loss.backward()
        assert all(p.grad is not None for p in small.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("pruned_to", "level", "message"),
    [
        (None, 4, r"level must be one of those that .*model\.pt has, 1, 2, 3, got 4"),
        (None, 0, "1, 2, 3, got 0"),
        (2, 3, r"level must be one of those that .*model\.pt has, 2, got 3"),
        (2, 1, "has, 2, got 1"),
    ],
)
def test_level_that_the_weights_do_not_have_is_an_error(net, tmp_path, tiny, pruned_to, level, message):
    weights = net.state_dict() if pruned_to is None else prune_state_dict(net.state_dict(), pruned_to)
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        load_network(tiny(), tmp_path / "model.pt", level)


def test_weights_of_another_network_are_an_error_that_says_where(path, tiny):
    with pytest.raises(ValueError, match=r"model\.pt does not fit the network: encoder\.0.* is \[4"):
        load_network(tiny(channels=(5, 6, 8, 10)), path)
    with pytest.raises(ValueError, match=r"encoder\.3.* is not in the network"):
        load_network(tiny(channels=(4, 6, 8)), path)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, r"no checkpoint at .*model\.pt: train first"),
        ([1, 2], ValueError, "holds no weights by name, but a list"),
        ({"model": 3}, ValueError, r"must hold weights, alone or as 'model', got 'model'"),
        ({"epoch": 3}, ValueError, "must hold weights, alone or as 'model', got 'epoch'"),
    ],
    ids=["missing", "list", "number", "no-model"],
)
@pytest.mark.parametrize("use", [lambda p, n: load_network(n, p), lambda p, _: prune_weights(p, 1, "x.pt")])
def test_file_that_holds_no_weights_is_named(tmp_path, tiny, content, error, message, use):
    if content is not None:
        torch.save(content, tmp_path / "model.pt")
    with pytest.raises(error, match=message):
        use(tmp_path / "model.pt", tiny())


def test_code_in_a_file_is_not_run(tmp_path, tiny):
    torch.save({"model": Payload(tmp_path / "ran")}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt is refused"):
        load_network(tiny(), tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()


def test_runtime_is_for_exported_networks_only(path, tiny):
    with pytest.raises(ValueError, match=r"runtime must be left out with .*model\.pt: openvino runs \.onnx"):
        load_network(tiny(), path, runtime="openvino")


# Pruning a file


def test_command_prunes_a_checkpoint(net, x, path, tmp_path, tiny):
    out = tmp_path / "small" / "model_L2.pt"
    done = python("-m", "monai_unetpp", "prune", "--checkpoint", path, "--level", "2", "--out", out)
    assert done.returncode == 0, done.stderr
    kept = sum(p.numel() for p in prune(net, 2).parameters())
    of = sum(p.numel() for p in net.parameters())
    assert done.stdout == f"L2: {kept:,} of {of:,} weights, in {out}\n"
    assert torch.equal(load_network(tiny(), out)(x), net.all_heads(x)[-2])


def test_file_that_is_there_is_overwritten_on_request_only(path, tmp_path, capsys):
    (tmp_path / "notes.pt").write_text("not ours")
    arguments = ["prune", "--checkpoint", str(path), "--level", "1", "--out", str(tmp_path / "notes.pt")]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "notes.pt exists, and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "notes.pt").read_text() == "not ours"
    main([*arguments, "--overwrite"])
    assert "L1: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "4"], r"model.pt: level must be one of the heads in state_dict, 1, 2, 3, got 4."),
        (
            ["--level", "2", "--skips", "long"],
            "model.pt: skips must be 'dense' for these weights, got 'long'.",
        ),
        (["--level", "2", "--checkpoint", "gone.pt"], "gone.pt: train first"),
    ],
    ids=["level", "skips", "file"],
)
def test_mistake_is_one_line_and_leaves_no_file(path, tmp_path, capsys, arguments, message):
    out = tmp_path / "out.pt"
    with pytest.raises(SystemExit) as end:
        main(["prune", "--checkpoint", str(path), "--out", str(out), *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt"]


# Atomic files


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="disk"), atomic_write(tmp_path / "a.txt") as part:  # noqa: PT012
        part.write_text("half")
        raise OSError("disk full")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_file_that_the_disk_did_not_take_after_all_replaces_nothing(tmp_path, monkeypatch):
    """A network file system may take every write, and say only at the end that it could not."""

    def fsync(_):
        raise OSError(5, "Input/output error")

    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="Input/output"), atomic_write(tmp_path / "a.txt") as part:
        part.write_text("new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


FULL_DISK = """
import resource, signal, sys, torch
from monai_unetpp.weights import prune_weights
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    prune_weights(sys.argv[1], 2, sys.argv[2])
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of a file, which Windows cannot")
def test_full_disk_leaves_no_partial_file(path, tmp_path):
    out = tmp_path / "small.pt"
    done = python("-c", FULL_DISK, path, out)
    assert done.stdout.strip() in ("OSError", "RuntimeError"), done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt"]
