# SPDX-License-Identifier: Apache-2.0
"""What no one thought of: networks of arguments drawn at random, and scans that lie in any way.

``pytest tests/test_fuzz.py --hypothesis-profile campaign`` draws many more.
"""

import io

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import assume, event, given
from hypothesis import strategies as st

from bundles import BUNDLES, TINY, Threshold, rotation
from monai_unetpp import UNetPlusPlus, prune
from monai_unetpp.network import SKIPS
from monai_unetpp.segment import load_pipeline

# Constructors

WIDTH = st.integers(1, 6)
ODD = st.sampled_from([1, 3, 5])
ACTS = ["relu", "prelu", "swish", "gelu", ("leakyrelu", {"inplace": True}), ("elu", {"alpha": 0.5}), None]
NORMS = ["instance", ("instance", {"affine": True}), "batch", ("group", {"num_groups": 2}), None]
JUNK = [
    *(0, -1, 4, 1.5, True, None, "", "nonsense", [], [2], (3, 3), {}, [0, 4], [4, -4], [2, "2"], [[2, 2], 2]),
    *(float("nan"), float("inf"), ("group", {"num_groups": 7}), ("relu", {"slope": 1}), ["instance"], 10**30),
    *(("instance", None), "layer", "geglu", "syncbatch", "localresponse", [2.0, 2.0], b"conv", [None, None]),
]

pytestmark = pytest.mark.slow


@st.composite
def arguments(draw):
    """Arguments that fit together, or all but one of them."""
    dims, depth = draw(st.sampled_from([2, 2, 3])), draw(st.integers(1, 3))

    def rows(number, one):
        each = st.one_of(one, st.tuples(*[one] * dims))
        return draw(st.one_of(one, st.lists(each, min_size=number, max_size=number)))

    found = {
        "spatial_dims": dims,
        "in_channels": draw(WIDTH),
        "out_channels": draw(WIDTH),
        "channels": draw(st.lists(WIDTH, min_size=depth + 1, max_size=depth + 1)),
        "strides": rows(depth, st.integers(1, 3)),
        "kernel_size": rows(depth + 1, ODD),
        "skips": draw(st.sampled_from(SKIPS)),
        "deep_supervision": draw(st.booleans()),
        "act": draw(st.sampled_from(ACTS)),
        "norm": draw(st.sampled_from(NORMS)),
        "dropout": draw(st.sampled_from([0.0, 0.2])),
        "bias": draw(st.booleans()),
        "upsample": draw(st.sampled_from(["deconv", "nontrainable", "pixelshuffle"])),
        "use_checkpoint": draw(st.booleans()),
        "up_channels": draw(st.one_of(st.none(), st.lists(WIDTH, min_size=depth, max_size=depth))),
        "last_channels": draw(st.one_of(st.none(), WIDTH)),
        "block": draw(st.sampled_from(["conv", "residual", "dense"])),
    }
    if draw(st.booleans()):
        found[draw(st.sampled_from(sorted(found)))] = draw(st.sampled_from(JUNK))
    return found


def smallest(net):
    """An input as small as the norm of the deepest row allows, and a sample more than one."""
    sizes = [2 * divisor + 1 for divisor in net._divisors[-1]]
    return torch.rand(2, net.in_channels, *sizes)


@given(arguments(), st.sampled_from([True, False, False]))
def test_a_network_works_in_every_way_or_is_refused_with_a_reason(arguments, scripted):
    torch.manual_seed(0)
    try:
        net = UNetPlusPlus(**arguments)
    except (ValueError, TypeError) as refusal:
        message = str(refusal)
    else:
        message = None
    event("accepted" if message is None else "refused")
    if message is not None:
        assert message
        return
    x = smallest(net)
    heads = net.train()(x)
    heads = heads if isinstance(heads, list) else [heads]
    sum(head.square().mean() for head in heads).backward()
    assert all(head.shape == (2, net.arguments["out_channels"], *x.shape[2:]) for head in heads)
    assert all(parameter.grad is not None for parameter in net.parameters())
    net.eval()
    with torch.no_grad():
        heads = net.all_heads(x)
        for key in net.heads:
            level = int(key) + 1
            pruned = prune(net, level)
            assert torch.equal(pruned(x), heads[net.depth - level])
        again = UNetPlusPlus(**net.arguments).eval()
        again.load_state_dict(net.state_dict())
        assert torch.equal(again(x), heads[0])
        if not scripted:  # TorchScript takes most of the time
            return
        buffer, x = io.BytesIO(), x.double()  # a norm of two voxels makes much of the last digit
        torch.jit.save(torch.jit.script(net.double()), buffer)
        buffer.seek(0)
        torch.testing.assert_close(torch.jit.load(buffer)(x), net(x))


# Geometries


@st.composite
def grids(draw):
    """Shape and affine of a scan: thin, flat, mirrored, turned, oblique, far away."""
    shape = draw(st.tuples(*[st.integers(1, 12)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.4, 9.0)] * 3))
    order = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    turns = draw(st.one_of(st.just((0.0, 0.0)), st.tuples(*[st.floats(-45, 45)] * 2)))
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(turns[0], 2) @ rotation(turns[1], 0) @ np.eye(3)[order] @ np.diag(signs)
    matrix[:3, :3] *= spacing
    matrix[:3, 3] = draw(st.tuples(*[st.floats(-2000, 2000)] * 3))
    return shape, matrix.astype(np.float32).astype(np.float64)  # as a file keeps it


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Of the liver bundle, into a folder that is in it."""
    folder = tmp_path_factory.mktemp("grids")
    torch.save(UNetPlusPlus(3, 1, 3, channels=[4, 8], strides=2).state_dict(), folder / "model.pt")
    return load_pipeline(BUNDLES / "liver", folder, folder, ckpt_path=str(folder / "model.pt"), **TINY)


@given(grids(), st.tuples(*[st.floats(-1, 1)] * 3))
def test_a_mask_lies_on_the_scans_grid_and_where_the_scan_is_bright(pipeline, tmp_path_factory, grid, slope):
    """A scan that gets brighter along a direction is found beyond the plane where it is half bright."""
    shape, matrix = grid
    length = np.linalg.norm(slope)
    assume(length > 0.1)
    direction = np.array(slope) / length
    world = nib.affines.apply_affine(matrix, np.moveaxis(np.indices(shape), 0, -1))
    beyond = (world - world.reshape(-1, 3).mean(axis=0)) @ direction  # mm
    folder = tmp_path_factory.mktemp("scan")
    path = folder / "ct.nii"
    nib.save(nib.Nifti1Image((50 + 10 * beyond).astype(np.float32), matrix), path)
    scan = pipeline.preprocessing({"image": str(path)})
    labels = pipeline.inferer(scan["image"][None], Threshold(3))
    assert labels.shape == (1, 1, *shape)
    np.testing.assert_allclose(labels.affine.reshape(4, 4), nib.load(path).affine, atol=1e-3)
    pipeline.postprocessing({**scan, "pred": labels[0]})
    mask = nib.load(pipeline_output(pipeline))
    assert mask.shape == shape
    np.testing.assert_allclose(mask.affine, matrix, atol=1e-3)
    voxel = np.abs(matrix[:3, :3].T @ direction).max() + np.abs(direction).sum() * TINY["pixdim"][0]
    sure = np.abs(beyond) > voxel
    np.testing.assert_array_equal(np.asarray(mask.dataobj)[sure], (beyond > 0)[sure])


def pipeline_output(pipeline):
    return f"{pipeline.postprocessing.transforms[0].output_dir}/ct_seg.nii.gz"
