# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Export and serve
#
# The network is trained, and an application is to use it, perhaps one without Python. This tutorial shows how
# to
#
# 1. write a level in every form: weights, TorchScript, a `torch.export` program, ONNX,
# 2. check that all give the same result, and compare size and speed,
# 3. segment a volume with the ONNX file in the network's place,
# 4. serve it by HTTP: a NIfTI goes in, a mask comes out.
#
# It takes about half a minute on one CPU core and downloads nothing. The network is that of the liver bundle:
# two-dimensional, trained on slices of real CT. The scan is synthetic, so no number below says anything about
# patients. On the command line `levels.json` of the bundles chooses a level, which tutorial 03 explains, and
# exports it.

# %%
import logging
import warnings
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from timeit import repeat

import nibabel as nib
import numpy as np
import torch
from matplotlib import pyplot as plt
from monai.metrics import compute_dice

from monai_unetpp import UNetPlusPlus, load_network, prune
from monai_unetpp.bundle import copy_bundle
from monai_unetpp.data.phantoms import write_phantoms
from monai_unetpp.export import export_level
from monai_unetpp.pictures import View, draw_plane
from monai_unetpp.segment import load_pipeline

output = Path("output") / "05"
warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # deprecated, and still requested

# %% [markdown]
# ## A network and a scan

# %%
bundle = copy_bundle("liver", output, overwrite=True)
blank = UNetPlusPlus(
    spatial_dims=2, in_channels=1, out_channels=2, channels=(16, 32, 64, 128, 256), strides=2
)
net = load_network(blank, bundle / "weights" / "slices.pt")
print(f"L1 to L{net.depth}, {sum(p.numel() for p in net.parameters()):,} parameters")

data = write_phantoms(output / "data", "liver", cases=1, overwrite=True).parent
scan = data / "imagesTr" / "liver_000.nii.gz"
for path in (scan, data / "labelsTr" / scan.name):
    nib.save(nib.load(path).slicer[:, :, ::2], path)  # every second slice will do
pipeline = load_pipeline(bundle, scan, output / "masks", overlays=["slices"])
volume = pipeline.preprocessing({"image": str(scan)})["image"]  # (1, X, Y, Z), pixels of 2 mm, HU scaled
print("the scan as the network sees it:", tuple(volume.shape))

# %% [markdown]
# ## A level in every form
#
# `export_level` cuts a level out, writes it, reads what it has written, and runs it beside the full network
# on a slice of a scan and on a smaller one. A file that gives another result is not kept. Size and number of
# slices stay variable in all forms. L3 is the level that these weights were calibrated for, and L1 is the
# smallest; they stand for all.

# %%
middle = volume.as_tensor()[None, ..., volume.shape[-1] // 2]  # a slice, (1, 1, X, Y)
files = {k: export_level(net, k, output / f"L{k}", middle, overwrite=True) for k in (1, 3)}

# %% [markdown]
# | file | what reads it |
# | --- | --- |
# | `model.pt` | this package: `load_network` |
# | `model.ts` | torch alone, in Python or C++; MONAI Label and MONAI Deploy |
# | `model.pt2` | torch alone; the successor of TorchScript |
# | `model.onnx` | ONNX Runtime, OpenVINO: requires neither torch nor Python |
#
# How close is 'the same'? Weights give the same bits. Other forms use other kernels, which round differently.
# The differences, as a share of the largest logit:

# %%
runtimes = [name for name in ("onnxruntime", "openvino") if find_spec(name)]
loaders = {  # for the files made above: files from elsewhere can run code, except weights and ONNX
    "weights": ("pt", partial(load_network, blank)),
    "TorchScript": ("ts", torch.jit.load),
    "torch.export": ("pt2", lambda path: torch.export.load(path).module()),
    **{name: ("onnx", partial(load_network, blank, runtime=name)) for name in runtimes},
}
forms = {
    (level, name): load(files[level][suffix]) for level in files for name, (suffix, load) in loaders.items()
}

with torch.no_grad():
    heads = net.all_heads(middle)  # L4, L3, L2, L1
    for name in loaders:
        apart = {k: (forms[k, name](middle) - heads[-k]).abs().max() / heads[-k].abs().max() for k in files}
        print(f"{name:12}", *(f"L{k}: {share:.0e}" for k, share in apart.items()), sep="   ")
        # OpenVINO uses other kernels from one CPU to the next: 3e-5 on one, 2e-4 on another
        assert max(apart.values()) < (1e-3 if name == "openvino" else 1e-4)

# %% [markdown]
# ## Size and speed
#
# One slice, the fastest of five runs.

# %%
milliseconds, kib = {}, {}
print(f"{'':16}" + "".join(f"{name:>14}" for name in loaders))
with torch.no_grad():
    for level in files:
        for name, (suffix, _) in loaders.items():
            form = forms[level, name]
            form(middle)  # the first run prepares what later ones use
            milliseconds[level, name] = 1e3 * min(repeat(partial(form, middle), number=1, repeat=5))
            kib[level, name] = files[level][suffix].stat().st_size / 1024
        print(f"L{level}, ms".ljust(16) + "".join(f"{milliseconds[level, name]:14.1f}" for name in loaders))
        print(f"L{level}, KiB".ljust(16) + "".join(f"{kib[level, name]:14.0f}" for name in loaders))

# %%
colours = dict(zip(loaders, ["#1d3557", "#457b9d", "#8ab6c9", "#e76f51", "#f4a261"], strict=False))
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for n, name in enumerate(loaders):
    place = [group + 0.16 * (n - (len(loaders) - 1) / 2) for group in range(len(files))]
    left.bar(place, [milliseconds[level, name] for level in files], 0.14, color=colours[name], label=name)
    right.bar(place, [kib[level, name] for level in files], 0.14, color=colours[name])
left.set(ylabel="ms, one slice", title="time")
right.set(ylabel="KiB", title="file", yscale="log")
for axes in (left, right):
    axes.set_xticks(range(len(files)), [f"L{level}" for level in files])
    axes.spines[["top", "right"]].set_visible(False)
left.legend(frameon=False)
figure.savefig(output / "forms.png", dpi=100)

# %% [markdown]
# The level matters more than the form. Which form is fastest depends on the machine, the threads and the size
# of the network: measure yours.
#
# ## A volume, by the ONNX file
#
# `load_network` returns an object that is called like the network, so everything around it stays the same:
# the window that moves through the volume, and the way back to the grid of the file. Both come from the
# bundle's `inference.json`, with the preprocessing that the network was trained with.

# %%
onnx = load_network(blank, files[3]["onnx"])
print(type(onnx).__name__, "by", onnx.runtime, "in a", type(pipeline.inferer.inferer).__name__)


def segment(path, network):
    """Labels (X, Y, Z) of the scan in a file, on the grid of the file."""
    image = pipeline.preprocessing({"image": str(path)})["image"]
    with torch.no_grad():
        return pipeline.inferer(image[None], network)[0, 0]


mask = segment(scan, onnx)
same = segment(scan, prune(net, 3)) == mask
print(f"{mask.numel():,} voxels, {same.float().mean():.4%} of them as by torch")

# %% [markdown]
# ## Serve it
#
# This is the smallest server that does it, with the standard library alone. `POST` a NIfTI, receive a NIfTI.
# The pipeline is loaded once, before the first request; requests are served one after another.


# %%
class Segmenter(BaseHTTPRequestHandler):
    largest = 512 * 2**20  # bytes of a scan
    timeout = 60  # seconds that a client may keep silent

    def do_POST(self):
        size = int(self.headers.get("Content-Length", 0))
        if not 0 < size <= self.largest:
            self.answer(413, f"a scan must have 1 to {self.largest} bytes, got {size}".encode())
            return
        with TemporaryDirectory() as folder:
            scan = Path(folder) / "scan.nii.gz"
            scan.write_bytes(self.rfile.read(size))
            try:
                mask = segment(scan, onnx)
            except Exception as error:  # whatever a client sends, the service must not end
                logging.getLogger("service").info("refused", exc_info=error)
                self.answer(400, b"this is not a readable CT volume in NIfTI (.nii.gz)")
                return
            nib.save(nib.Nifti1Image(mask.numpy(), mask.affine.numpy()), Path(folder) / "mask.nii.gz")
            self.answer(200, (Path(folder) / "mask.nii.gz").read_bytes(), "application/gzip")

    def answer(self, status, body, kind="text/plain"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Keep this page quiet."""


server = HTTPServer(("127.0.0.1", 0), Segmenter)  # this machine only; 0: any free port
thread = Thread(target=server.serve_forever, daemon=True)
thread.start()

# %% [markdown]
# Send it a scan. From a shell the same is
# `curl --data-binary @ct.nii.gz http://127.0.0.1:PORT -o mask.nii.gz`.


# %%
def ask(body):
    connection = HTTPConnection(*server.server_address, timeout=120)
    try:
        connection.request("POST", "/", body)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


status, body = ask(scan.read_bytes())
(output / "mask.nii.gz").write_bytes(body)
print(status, f"{len(body):,} bytes")
print(*ask(b"this is no scan"))

# %%
image, found, reference = (
    nib.load(path) for path in (scan, output / "mask.nii.gz", data / "labelsTr" / scan.name)
)
assert np.allclose(found.affine, image.affine)
assert np.array_equal(np.asarray(found.dataobj), mask.numpy())

view = View(image.affine, image.header.get_zooms())  # turned as radiologists look at it
ct, found, reference = (view.turn(np.asarray(volume.dataobj)) for volume in (image, found, reference))
there = np.flatnonzero(view.profile(reference > 0))
figure, axes = plt.subplots(1, 4, figsize=(14, 3), layout="constrained", facecolor="black")
for ax, n in zip(axes, np.quantile(there, [0.2, 0.4, 0.6, 0.8]).round().astype(int), strict=True):
    outlines = {"white": view.plane(reference, n) > 0, "#ff5252": view.plane(found, n) > 0}
    draw_plane(ax, view.plane(ct, n), outlines, (-150, 250), view.aspect)
figure.suptitle("the served mask red, the reference white", color="white")
figure.savefig(output / "served.png", dpi=100)

# %% [markdown]
# Shut it down: no thread and no open port remain.

# %%
server.shutdown()
thread.join()
server.server_close()

# %% [markdown]
# ## What a real service requires beyond that
#
# - *Who may ask*: authentication, TLS, a reverse proxy in front. `http.server` is for experiments; its own
#   documentation says that it is not for production.
# - *How much*: a queue with a limit, a timeout for a scan, memory reserved for the largest. The limit above
#   applies to the compressed file, which can be far larger when it is unpacked.
# - *Whose data*: scans are patients' data, in temporary files as well. Encrypt, delete, log no names.
# - *DICOM*: hospitals send series and expect a DICOM SEG or RTSTRUCT.
#   [MONAI Deploy](https://github.com/Project-MONAI/monai-deploy-app-sdk) does that;
#   [MONAI Label](https://github.com/Project-MONAI/MONAILabel) serves viewers such as 3D Slicer and OHIF.
#   `python -m monai_unetpp pack` builds the bundle that both accept.
# - *Many at once*: a server made for models, such as NVIDIA Triton, which takes the ONNX file or the
#   TorchScript one. The sliding window and the preprocessing then still require a place.
# - *What answered*: version of weights and code with every mask; a check that the scan is what the network
#   was trained for; somebody who looks at the results, over months.
# - *Whether it may*: software that takes part in decisions on patients is a medical device. Nothing here is
#   one.
#
# A folder of scans requires no server: tutorial 04.

# %% [markdown]
# The last cell checks what this page claims:

# %%
assert status == 200
assert not thread.is_alive()
dice = compute_dice(
    *(torch.as_tensor(volume > 0)[None, None].float() for volume in (found, reference))
).item()
print(f"liver with tumours, Dice {dice:.3f}")
assert dice > 0.8
assert same.float().mean() > 0.999
for name in loaders:
    assert milliseconds[1, name] < milliseconds[3, name]
    assert kib[1, name] < kib[3, name] / 4
for name in ("forms.png", "served.png"):
    assert (output / name).is_file()
