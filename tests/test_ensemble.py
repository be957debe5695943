# SPDX-License-Identifier: Apache-2.0
"""Several networks, or one on mirrored windows: the mean of their probabilities."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from bundles import BUNDLES, TINY
from monai_unetpp import UNetPlusPlus
from monai_unetpp.__main__ import main
from monai_unetpp.inferers import AveragedNetwork
from monai_unetpp.segment import segment

LIVER = BUNDLES / "liver"
SMALL = {**TINY, "channels": [4, 8]}
ONE_WINDOW = {**SMALL, "roi_size": [32, 32, 24]}  # blending is the same then


@pytest.fixture
def weights(trained, tmp_path):
    """Two networks of one plan: one that was trained, and the same with other numbers."""
    folder = tmp_path / "weights"
    folder.mkdir()
    one, two = trained / "models" / "model.pt", folder / "two.pt"
    state = torch.load(one, weights_only=True)
    torch.manual_seed(1)
    torch.save({name: value + 0.05 * torch.randn_like(value) for name, value in state.items()}, two)
    return [str(one), str(two)]


def probability(out, balls, weights, **settings):
    segment(
        balls / "imagesTr",
        out,
        LIVER,
        probability=1,
        ckpt_path=weights,
        override_record=True,
        **ONE_WINDOW,
        **settings,
    )
    paths = sorted(out.glob("*_probability.nii.gz"))
    assert len(paths) == 4
    return [np.asarray(nib.load(path).dataobj) for path in paths]


@pytest.mark.parametrize("classes", [1, 3])
def test_probabilities_are_the_mean(classes):
    torch.manual_seed(0)
    networks = [UNetPlusPlus(2, 1, classes, (4, 6, 8), strides=2).eval() for _ in range(3)]
    x = torch.rand(2, 1, 16, 12)
    act = torch.sigmoid if classes == 1 else lambda logits: logits.softmax(1)
    with torch.no_grad():
        wanted = torch.stack([act(net(x)) for net in networks]).mean(0)
        torch.testing.assert_close(act(AveragedNetwork(networks)(x)), wanted)


def test_of_one_network_nothing_changes():
    net = UNetPlusPlus(2, 1, 3, (4, 6, 8), strides=2).eval()
    x = torch.rand(2, 1, 16, 12)
    with torch.no_grad():
        torch.testing.assert_close(AveragedNetwork([net])(x).softmax(1), net(x).softmax(1))


def test_the_image_mirrored_along_mirrored_axes_gives_the_result_mirrored():
    net = AveragedNetwork([UNetPlusPlus(3, 1, 2, (4, 6, 8), strides=2).eval()], mirror_axes=[0, 2])
    assert len(net.flips) == 4
    x = torch.rand(1, 1, 8, 8, 12)
    with torch.no_grad():
        for axes in ([2], [4], [2, 4]):
            torch.testing.assert_close(net(x.flip(axes)), net(x).flip(axes), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(net(x.flip([3])), net(x).flip([3]), atol=1e-4)  # which was not mirrored


def test_a_probability_of_zero_stays_finite():
    def certain(windows):
        return torch.stack([torch.full_like(windows[:, 0], 1e4), torch.full_like(windows[:, 0], -1e4)], 1)

    assert AveragedNetwork([certain])(torch.rand(1, 1, 4, 4)).isfinite().all()


@pytest.mark.slow
def test_segment_averages_checkpoints(balls, weights, tmp_path):
    single = [probability(tmp_path / str(n), balls, path) for n, path in enumerate(weights)]
    both = probability(tmp_path / "both", balls, weights[0], ensemble=weights[1:])
    for n, found in enumerate(both):
        np.testing.assert_allclose(found, (single[0][n] + single[1][n]) / 2, atol=2e-3)
    assert max(np.abs(a - b).max() for a, b in zip(*single, strict=True)) > 0.05
    side = json.loads(next((tmp_path / "both").glob("*_seg.json")).read_text())
    assert len(side["ensemble"]) == 1


@pytest.mark.slow
def test_command_takes_checkpoints_and_mirrors(balls, weights, tmp_path):
    pairs = [word for key, value in ONE_WINDOW.items() for word in ("--set", key, str(value))]
    command = ["segment", "-i", str(balls / "imagesTr"), "-o", str(tmp_path / "out"), "--bundle", str(LIVER)]
    command += [
        "--checkpoint",
        *weights,
        "--mirror",
        "--set",
        "mirror_axes",
        "[0, 1]",
        "--override-record",
        *pairs,
    ]
    main(command)
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mirror": True}, r"mirror_axes of inference\.json is empty.*--set mirror_axes \[0\]"),
        ({"uncertainty": True, "mirror": True}, "uncertainty must be left out"),
    ],
)
def test_what_cannot_be_averaged_is_refused(balls, weights, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        segment(balls / "imagesTr", tmp_path / "out", LIVER, ckpt_path=weights[0], **SMALL, **settings)


@pytest.mark.slow
def test_weights_of_another_plan_and_the_same_twice_are_refused(balls, trained, weights, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained / "models", other)
    record = json.loads((other / "model.json").read_text())
    (other / "model.json").write_text(json.dumps({**record, "pixdim": [1.0, 1.0, 1.0]}))
    for ensemble, message in (
        ([other / "model.pt"], r"weights of one plan: .* was made with pixdim \[4.*, .* with \[1"),
        ([weights[0]], "must name each file once"),
    ):
        with pytest.raises(ValueError, match=message):
            segment(
                balls / "imagesTr",
                tmp_path / "out",
                LIVER,
                ckpt_path=weights[0],
                ensemble=ensemble,
                **SMALL,
            )
