# SPDX-License-Identifier: Apache-2.0
"""What has to be known of a GPU, in one command of at most nine minutes.

    python benchmarks/gpu.py --out benchmarks/results --work WORK

writes ``gpu_<name>.csv``, a row per figure, part after part, and ``gpu_<name>.md``, the tables. Parts in the
CSV are not measured again, unless ``--only`` names them. A part that fails is a row that says why, and the
others go on. ``--toy`` does the same at sizes for a CPU.

rates         matrix product and copy, which the shares of the other parts refer to
correctness   all heads against float32 on the CPU, by precision, kernels, order in memory, as a CUDA graph
versus        training and inference against MONAI's networks: time, peak memory, shares of the rates
memory        peak of a training step against the formula of ``monai-unetpp plan``
loader        wait for a batch against the training step
recipes       two minutes of training, by the liver and lung nodule bundles with mixed precision
levels        score_levels and early exit, with the network of ``recipes``
nccl          a training in as many processes as there are GPUs
compiled      the network by torch.compile: error, time
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from ignite.handlers import TimeLimit
from measure import MIB, inference, machine, matmul_peak, ratio, train_step
from monai.bundle import ConfigWorkflow
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from versus import REFERENCE, run
from versus import networks as versus_networks

from monai_unetpp import DeepSupervisionDiceLoss, UNetPlusPlus, load_network, score_levels
from monai_unetpp.data.phantoms import write_phantoms
from monai_unetpp.errors import find_cause
from monai_unetpp.files import atomic_write, write_csv
from monai_unetpp.levels import calibrate_exit
from monai_unetpp.levels.cost import interleaved, multiply_adds, peak_memory
from monai_unetpp.network import kernels
from monai_unetpp.planning.budget import step_memory

ROOT = Path(__file__).parents[1]
PLAIN = "UNetPlusPlus, plain"  # a name of versus.py
COLUMNS = ("part", "case", "figure", "value", "unit", "machine")
# tf32: torch's default for convolutions in float32 on a GPU, factors rounded to 11 bits
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# of the largest absolute value of a head: another order of adding; mantissas of 11, 8 and 11 bits
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 6e-2, "float16": 1e-2}
Row = dict[str, Any]
Figures = Iterator[tuple[str, str, float | str, str]]  # case, figure, value, unit


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    widths: tuple[int, ...] = (32, 32, 64, 128, 256)
    shapes: tuple[tuple[int, ...], ...] = ((8, 1, 512, 512), (2, 1, 96, 96, 96))
    checked: tuple[tuple[int, ...], ...] = ((2, 1, 117, 96), (1, 1, 48, 40, 35))
    planned: tuple[tuple[int, int, tuple[int, ...]], ...] = (  # dimensions, patch, widths
        (3, 64, (32, 64, 128, 256, 320)),
        (3, 128, (32, 64, 128, 256, 320)),
        (3, 96, (16, 32, 64, 128)),
        (2, 512, (32, 64, 128, 256, 512)),
    )
    product: int = 8192
    rounds: int = 5
    cases: int = 8
    seconds: int = 40  # of training, for each bundle
    recipe: tuple[tuple[str, Any], ...] = (("roi_size", [96, 96, 96]), ("pixdim", [2.0, 2.0, 2.0]))
    compiled: bool = True
    precisions: tuple[str, ...] = ("tf32", "bfloat16")


TOY = Sizes(
    widths=(8, 8, 8, 8, 8),
    shapes=((1, 1, 32, 32), (1, 1, 32, 32, 32)),
    checked=((1, 1, 35, 32), (1, 1, 32, 33, 32)),
    planned=((2, 32, (4, 8)),),
    product=128,
    rounds=1,
    cases=6,
    seconds=1,
    recipe=(("roi_size", [16, 16, 16]), ("pixdim", [12.0, 12.0, 12.0]), ("channels", [4, 6, 8])),
    compiled=False,
    precisions=("float32",),  # torch convolves bfloat16 without AVX-512 a hundred times slower
)


def main() -> None:
    """Measure what is missing, part by part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and weights")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure, again"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--toy", action="store_true", help="small sizes, to see that it works")
    args = parser.parse_args()
    path = args.out / f"gpu_{name_of(args.device)}.csv"
    rows = read(path)
    again = {part for part in args.only if len(args.only) < len(PARTS)}
    for part in args.only:
        if part not in again and any(row["part"] == part for row in rows):
            continue
        rows = [row for row in rows if row["part"] != part]
        rows += measured(part, partial(PARTS[part], args.device, TOY if args.toy else Sizes(), args.work))
        write_csv(path, sorted(rows, key=lambda row: list(PARTS).index(row["part"])))
    write_tables(path.with_suffix(".md"), rows)


def measured(part: str, figures: Callable[[], Figures]) -> list[Row]:
    """Return the rows of a part; one that fails ends with a row that says why."""
    rows, start = [], time.perf_counter()

    def add(case: str, figure: str, value: float | str, unit: str) -> None:
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        rows.append(dict(zip(COLUMNS, (part, case, figure, shown, unit, machine()), strict=True)))
        sys.stdout.write(f"{part}  {case}  {figure}  {shown} {unit}\n")
        sys.stdout.flush()

    try:
        for row in figures():
            add(*row)
    except Exception as error:
        traceback.print_exc()
        cause = find_cause(error) or f"{type(error).__name__}: {error}"
        add("", "failed", " ".join(cause.split())[:300], "")
    add("", "duration", time.perf_counter() - start, "s")
    return rows


# Parts: functions of device, sizes and a folder, which yield figures


def rates(device: str, sizes: Sizes, work: Path) -> Figures:  # noqa: ARG001
    """Matrix products by precision, and copies."""
    for name, dtype in DTYPES.items():
        with rounding(name):
            product = matmul_peak(device, sizes.product, dtype) / 1e12
        yield "", f"matrix product, {name}", product, "T multiply-adds/s"
    yield "", "copy", copy_rate(device, sizes) / 1e9, "GB/s read and written"


def correctness(device: str, sizes: Sizes, work: Path) -> Figures:  # noqa: ARG001
    """The largest error of any head, relative to its largest value."""
    for shape in sizes.checked:
        dims = len(shape) - 2
        net, x, wanted = heads_on_the_cpu(shape, sizes)
        net.to(device)
        for name in DTYPES:
            for mode, job in modes(net, x.to(device), dims).items():
                yield from error_of(f"{dims}D {name}, {mode}", name, job, wanted, device)


def versus(device: str, sizes: Sizes, work: Path) -> Figures:  # noqa: ARG001
    """Training and inference in float32 and in the mixed precision of the device."""
    for shape in sizes.shapes:
        for precision in sizes.precisions:
            with rounding(precision):
                product = matmul_peak(device, sizes.product, DTYPES[precision])
            copied = copy_rate(device, sizes)
            for task, passes in ((inference, 1), (train_step, 3)):  # backward: twice the forward
                nets = networks(len(shape) - 2, device, sizes, task is train_step)
                x = torch.rand(shape, device=device)
                jobs = {
                    name: partial(run, task, name, net, x, is_mixed(precision)) for name, net in nets.items()
                }
                seconds = interleaved(jobs, sizes.rounds, device)
                for name, job in jobs.items():
                    case = f"{len(shape) - 2}D {precision} {task.__name__}, {name}"
                    took = sorted(seconds[name])[len(seconds[name]) // 2]
                    yield case, "time", took * 1e3, "ms"
                    yield case, "time ratio", ratio(seconds, name, REFERENCE), ""
                    yield case, "peak memory", peak_memory(job, device), "MiB"
                    work_of = passes * multiply_adds(nets[name], shape)
                    yield case, "share of the matrix product", work_of / took / product, ""
                    moved = passes * traffic(nets[name], x, precision)
                    yield case, "share of the copy rate", moved / took / copied, ""


def memory(device: str, sizes: Sizes, work: Path) -> Figures:  # noqa: ARG001
    """Peak of a training step with our loss, beside what a plan expects of it."""
    kind = torch.device(device).type
    for dims, size, widths in sizes.planned:
        net = UNetPlusPlus(dims, 1, 2, widths, strides=2).to(device)
        x = torch.rand(2, 1, *[size] * dims, device=device)
        step = partial(learn, net, x, torch.zeros_like(x))
        expected = step_memory(net, [size] * dims, 2, kind) / MIB
        for chosen in ("auto", "plain")[: 1 + (kind == "cuda")]:
            with kernels.use(chosen):
                found = peak_memory(step, device)
            case = f"{dims}D {size}, {len(widths) - 1} levels from {widths[0]}, {chosen}"
            yield case, "peak memory", found, "MiB"
            yield case, "of the formula", found / expected, ""


def learn(net: nn.Module, x: Tensor, target: Tensor) -> None:
    """Do a training step without the optimizer, as a bundle does on this device."""
    net.zero_grad(set_to_none=True)
    with kernels.autocast(x.device, x.is_cuda)():
        heads = net(x)
    DeepSupervisionDiceLoss(include_background=False)(heads, target).backward()


def loader(device: str, sizes: Sizes, work: Path) -> Figures:
    """Wait for a batch of the liver bundle, from the cache, against the step."""
    flow = workflow("liver", device, sizes, work, "loader")
    trainer, waits, steps = flow.parser.get_parsed_content("train#trainer"), [], []
    clock = {"": time.perf_counter()}

    def lap(into: list[float]) -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        into.append(now - clock[""])
        clock[""] = now

    trainer.add_event_handler(Events.GET_BATCH_STARTED, lambda: lap([]))
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, lambda: lap(waits))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: lap(steps))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4 * sizes.cases), trainer.terminate)
    flow.run()
    half = len(steps) // 2  # the first steps are slow
    yield "liver", "wait for a batch", sum(waits[half:]) / len(waits[half:]) * 1e3, "ms"
    yield "liver", "training step", sum(steps[half:]) / len(steps[half:]) * 1e3, "ms"


def recipes(device: str, sizes: Sizes, work: Path) -> Figures:
    """Train on synthetic CT for a limited time."""
    for bundle in ("liver", "lung_nodule"):
        if torch.device(device).type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        flow = workflow(bundle, device, sizes, work, "recipes", amp=True)
        trainer = flow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.EPOCH_COMPLETED, TimeLimit(sizes.seconds))
        start = time.perf_counter()
        flow.run()
        evaluator = flow.parser.get_parsed_content("validate#evaluator")
        yield bundle, "epochs", trainer.state.epoch, ""
        yield bundle, "duration with validation", time.perf_counter() - start, "s"
        yield bundle, "validation Dice, best", float(evaluator.state.best_metric), ""
        if torch.device(device).type == "cuda":
            yield bundle, "peak memory", torch.cuda.max_memory_allocated() / MIB, "MiB"


def levels(device: str, sizes: Sizes, work: Path) -> Figures:
    """Score every level of what ``recipes`` trained, and calibrate early exit."""
    flow = workflow("liver", device, sizes, work, "levels")
    get = flow.parser.get_parsed_content
    network = load_network(get("network"), work / "liver_recipes" / "models" / "model.pt", device=device)
    data, inferer, post = (get(f"validate#{name}") for name in ("dataloader", "inferer", "postprocessing"))
    scores = score_levels(network, data, inferer, post, amp=True, rounds=sizes.rounds, progress=False)
    for score in scores:
        yield f"L{score.level}", "Dice", float(score.dice), ""
        yield f"L{score.level}", "time of a window", score.seconds * 1e3, "ms"
    found = calibrate_exit(network, data, inferer, post, amp=True)
    yield "early exit", "threshold", float(found.threshold), ""
    yield "early exit", "loss of Dice", found.full_dice - found.dice, ""


def nccl(device: str, sizes: Sizes, work: Path) -> Figures:
    """One epoch in as many processes as there are GPUs; gloo without one."""
    count = max(torch.cuda.device_count(), 1) if torch.device(device).type == "cuda" else 2
    data = phantoms("liver", sizes, work)
    files = [str(ROOT / "bundles" / "liver" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    folder = work / f"nccl_{time.time_ns()}"
    settings = {
        **dict(sizes.recipe),
        "dataset_dir": data,
        "bundle_root": folder,
        "max_epochs": 1,
        "val_fraction": 0.5,
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command += ["-m", "monai.bundle", "run", "--config_file", str(files)]
    command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if not (folder / "models" / "model.pt").is_file():
        errors = [
            line for line in done.stderr.splitlines() if re.match(r"(\[\w+\]: )?\w*(Error|error):", line)
        ]
        raise RuntimeError("; ".join(errors[:3]) or done.stderr[-1000:])
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    yield f"{count} processes, {backend}", "one epoch, with the start", time.perf_counter() - start, "s"


def compiled(device: str, sizes: Sizes, work: Path) -> Figures:  # noqa: ARG001
    """Error of all heads in float32; time in the mixed precision of the device, and that of compiling."""
    if not sizes.compiled:
        return
    for shape in sizes.checked:
        net, x, wanted = heads_on_the_cpu(shape, sizes)
        net.to(device)
        job = partial(heads_by, torch.compile(net.all_heads), x.to(device), "plain")
        yield from error_of(f"{len(shape) - 2}D float32", "float32", job, wanted, device)
    for shape in sizes.shapes[::-1]:
        torch.manual_seed(0)
        net = versus_networks(len(shape) - 2, 2, sizes.widths)[PLAIN]().to(device)
        x, fast = torch.rand(shape, device=device), torch.compile(net)
        for task in (inference, train_step):
            case = f"{len(shape) - 2}D {task.__name__}"
            jobs = {name: partial(run, task, PLAIN, of, x, True) for name, of in (("", fast), (PLAIN, net))}
            start = time.perf_counter()
            jobs[""]()
            yield case, "compiling", time.perf_counter() - start, "s"
            seconds = interleaved(jobs, sizes.rounds, device)
            yield case, "time, of that without", ratio(seconds, "", PLAIN), ""
            yield case, "peak memory", peak_memory(jobs[""], device), "MiB"


PARTS: Mapping[str, Callable[[str, Sizes, Path], Figures]] = {
    part.__name__: part
    for part in (rates, correctness, versus, memory, loader, recipes, levels, nccl, compiled)
}


# What the parts share


def networks(dims: int, device: str, sizes: Sizes, training: bool) -> dict[str, nn.Module]:
    """Return the networks of versus.py."""
    torch.manual_seed(0)
    makers = versus_networks(dims, 2, sizes.widths)
    return {n: make().to(device) for n, make in makers.items() if training or "checkpoint" not in n}


def is_mixed(precision: str) -> bool:
    """Whether a precision is that of autocast."""
    return DTYPES[precision] != torch.float32


@contextmanager
def rounding(precision: str) -> Iterator[None]:
    """Let convolutions and matrix products round to TF32 or not."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def heads_on_the_cpu(shape: tuple[int, ...], sizes: Sizes) -> tuple[UNetPlusPlus, Tensor, list[Tensor]]:
    """Return a network, an input, and all heads as plain torch computes them on the CPU."""
    torch.manual_seed(0)
    widths = sizes.widths
    net = UNetPlusPlus(len(shape) - 2, 1, 3, channels=widths, strides=2, last_channels=widths[0]).eval()
    x = torch.rand(shape)
    with kernels.plain(), torch.no_grad():
        return net, x, list(net.all_heads(x))


def error_of(
    case: str, precision: str, job: Callable[[], list[Tensor]], wanted: list[Tensor], device: str
) -> Figures:
    """Yield the largest error of the heads that ``job`` returns, or why it failed."""
    amp = torch.autocast(torch.device(device).type, DTYPES[precision], enabled=is_mixed(precision))
    try:
        with rounding(precision), amp, torch.no_grad():
            found = [head.float().cpu() for head in job()]
    except Exception as error:
        yield case, "failed", " ".join(f"{type(error).__name__}: {error}".split())[:200], ""
        return
    pairs = zip(found, wanted, strict=True)
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    verdict = "within" if worst <= TOLERANCE[precision] else "BEYOND"
    yield case, f"error, {verdict} {TOLERANCE[precision]:g}", worst, ""


def heads_by(of: Callable[[Tensor], Any], x: Tensor, chosen: str) -> list[Tensor]:
    """Return the heads by the kernels of a name."""
    with kernels.use(chosen):
        return list(of(x))


def modes(net: UNetPlusPlus, x: Tensor, dims: int) -> dict[str, Callable[[], list[Tensor]]]:
    """Return the ways in which all heads are computed."""
    order = torch.channels_last if dims == 2 else torch.channels_last_3d
    found = {
        "auto": partial(heads_by, net.all_heads, x, "auto"),
        "plain": partial(heads_by, net.all_heads, x, "plain"),
        "memory": partial(heads_by, net.all_heads, x, "memory"),
        "plain, channels last": partial(heads_by, net.all_heads, x.to(memory_format=order), "plain"),
    }
    if x.is_cuda:
        found["plain, CUDA graph"] = partial(graphed, net, x)
    return found


def graphed(net: UNetPlusPlus, x: Tensor) -> list[Tensor]:
    """Return all heads, from a CUDA graph that was captured with other values."""
    static = torch.rand_like(x)
    with kernels.plain():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                net.all_heads(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            heads = net.all_heads(static)
    static.copy_(x)
    graph.replay()
    return list(heads)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes that operators read and write, each tensor once an operator; views move nothing."""

    moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            self.moved += sum(t.numel() * t.element_size() for t in tensors)
        return result


def traffic(net: nn.Module, x: Tensor, precision: str) -> int:
    """Return the bytes that the operators of a forward pass read and write."""
    with torch.no_grad(), _Traffic() as counted:
        run(lambda net, x: net.eval()(x), PLAIN, net, x, is_mixed(precision))
    return counted.moved


def copy_rate(device: str, sizes: Sizes) -> float:
    """Return the bytes per second that a copy reads and writes, the best of five."""
    a = torch.rand(4 * sizes.product**2, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / min(interleaved({"": lambda: b.copy_(a)}, 5, device)[""])


def phantoms(bundle: str, sizes: Sizes, work: Path) -> Path:
    """Return a data set of synthetic CT for a bundle, written once."""
    folder = work / f"{bundle}_data"
    if not (folder / "dataset.json").exists():
        write_phantoms(folder, "liver" if bundle == "liver" else "chest", sizes.cases, overwrite=True)
    return folder


def workflow(bundle: str, device: str, sizes: Sizes, work: Path, part: str, **changes: Any) -> ConfigWorkflow:
    """Return a training of a bundle that is ready to run, in a folder of its own."""
    root = work / f"{bundle}_{part}"
    if root.exists() and part != "levels":
        root.rename(work / f"{root.name}_{time.time_ns()}")
    flow = ConfigWorkflow(
        str(ROOT / "bundles" / bundle / "train.json"),
        workflow_type="train",
        logging_file=False,
        bundle_root=str(root),
        dataset_dir=str(phantoms(bundle, sizes, work)),
        device=device,
        max_epochs=1000,
        val_interval=1,  # a time limit may end it after any epoch
        **{**dict(sizes.recipe), **changes},
    )
    flow.initialize()
    return flow


def name_of(device: str) -> str:
    """Return the name of the card, for a file."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
    return re.sub(r"[^a-z0-9]+", "_", name.lower().replace("nvidia", "")).strip("_")


def read(path: Path) -> list[Row]:
    """Return the rows that were measured before."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_tables(path: Path, rows: list[Row]) -> None:
    """Write a table for each part, a row per case and a column per figure."""
    lines = [f"# {path.stem}", "", f"{rows[0]['machine']}", ""]
    for part in PARTS:
        mine = [row for row in rows if row["part"] == part]
        figures = list(dict.fromkeys(re.sub(r",? (within|BEYOND).*", "", row["figure"]) for row in mine))
        if not mine:
            continue
        lines += [f"## {part}", "", " | ".join(["| ", *figures]) + " |", "| --- " * (len(figures) + 1) + "|"]
        for case in dict.fromkeys(row["case"] for row in mine):
            cells = {
                re.sub(r",? (within|BEYOND).*", "", row["figure"]): f"{row['value']} {row['unit']}".strip()
                + (" **beyond**" if "BEYOND" in row["figure"] else "")
                for row in mine
                if row["case"] == case
            }
            lines.append(" | ".join([f"| {case}", *(cells.get(figure, "") for figure in figures)]) + " |")
        lines.append("")
    with atomic_write(path) as part_file:
        Path(part_file).write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
