# SPDX-License-Identifier: Apache-2.0
r"""The triangle: every depth of U-Net inside one network.

X^{0,0}  X^{0,1}  X^{0,2}  X^{0,3}  X^{0,4}      row i   = resolution, 0 is the input's
X^{1,0}  X^{1,1}  X^{1,2}  X^{1,3}               column j = dense step; column 0 is the encoder
X^{2,0}  X^{2,1}  X^{2,2}                        head k  = 1x1 convolution on X^{0,k}
X^{3,0}  X^{3,1}                                 level k = all nodes with i + j <= k
X^{4,0}
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_unetpp.network import kernels
from monai_unetpp.network.backbones import backbone_stages, backbone_widths
from monai_unetpp.network.blocks import BLOCKS, EncoderRow, Node
from monai_unetpp.network.kernels import mode

__all__ = ["SKIPS", "UNetPlusPlus"]

SKIPS = ("dense", "short", "long")
PerAxis = int | Sequence[int]


class UNetPlusPlus(nn.Module):
    """UNet++ in 2D or 3D, of any depth, trained on all heads and evaluated at any level.

    In training with deep supervision, ``net(x)`` is a list of logits, one per level, **deepest first**.
    In evaluation it is one tensor: the logits of :attr:`level`. :meth:`all_heads` is the list in any mode.
    A node exists only if a head depends on it, so every parameter of the network receives a gradient.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: classes, background included; 1 for a sigmoid.
        channels: width of each row, finest first; its length less one is the number of levels ``L``.
        strides: between rows ``i`` and ``i + 1``: an int for all, or a sequence of ``L`` entries, each an
            int or one per axis. Thick-slice CT wants ``[(2, 2, 1), 2, 2, 2]``.
        kernel_size: of the 3x3 convolutions: an odd int for all rows, or a sequence of ``L + 1`` entries,
            each an odd int or one per axis.
        skips: which maps of row ``i`` enter node ``(i, j)``: ``"dense"`` all before it (UNet++), ``"short"``
            the one before it (UNet+, Deep Layer Aggregation), ``"long"`` the encoder's (U-Net^e; with deep
            supervision off, the plain U-Net).
        deep_supervision: whether every level has a head, or only the deepest.
        act: activation, as MONAI's ``Act`` factory takes it.
        norm: normalisation, as MONAI's ``Norm`` factory takes it; ``None`` for none.
        dropout: probability, after each norm; 0 for none.
        bias: whether the convolutions have a bias.
        upsample: ``"deconv"``, ``"nontrainable"`` or ``"pixelshuffle"``, as MONAI's ``UpSample`` takes it.
        up_channels: channels of the upsampled map that enters row ``i``, one per row 0 .. L-1; default the
            row's width.
        use_checkpoint: whether training computes each node twice, to keep only the nodes' results in memory.
        last_channels: width of the last node ``X^{0,L}``; default ``channels[0]``. It and ``up_channels``
            exist to hold weights of MONAI's ``BasicUNetPlusPlus``.
        block: what a node is: ``"conv"``, two convolutions; ``"residual"``, with a 1x1 convolution past them;
            or ``"dense"``, whose second convolution sees what the first one saw, too.
        encoder: name of a backbone that MONAI's ``FlexibleUNet`` knows, such as ``"resnet18"`` or
            ``"efficientnet-b0"``: rows 1, 2, ... of column 0 are its feature maps, of which there are 5.
            Row 0 stays ours: backbones begin at half of the input's size. ``strides`` must be 2.
        pretrained: whether the backbone begins with MONAI's weights, downloaded; see
            :func:`~monai_unetpp.network.backbones.backbone_stages`.

    Raises:
        ValueError: if an argument is out of range or lengths do not agree.

    Example:
        >>> net = UNetPlusPlus(spatial_dims=3, in_channels=1, out_channels=3, channels=(8, 16, 32), strides=2)
        >>> [tuple(head.shape) for head in net(torch.zeros(1, 1, 32, 32, 32))]  # L^2, L^1
        [(1, 3, 32, 32, 32), (1, 3, 32, 32, 32)]
        >>> tuple(net.eval()(torch.zeros(1, 1, 30, 32, 33)).shape)
        (1, 3, 30, 32, 33)

    Reference:
        Zhou et al., UNet++: A Nested U-Net Architecture for Medical Image Segmentation (DLMIA 2018,
        arXiv:1807.10165) and UNet++: Redesigning Skip Connections to Exploit Multiscale Features in Image
        Segmentation (IEEE TMI 2020, arXiv:1912.05074).
    """

    __jit_unused_properties__ = ("level",)

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        strides: int | Sequence[PerAxis] = (2, 2, 2, 2),
        kernel_size: int | Sequence[PerAxis] = 3,
        skips: str = "dense",
        deep_supervision: bool = True,
        act: tuple[Any, ...] | str | None = ("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
        norm: tuple[Any, ...] | str | None = ("instance", {"affine": True}),
        dropout: float = 0.0,
        bias: bool = True,
        upsample: str = "deconv",
        use_checkpoint: bool = False,
        up_channels: Sequence[int] | None = None,
        last_channels: int | None = None,
        block: str = "conv",
        encoder: str | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}.")
        if skips not in SKIPS:
            raise ValueError(f"skips must be one of {', '.join(SKIPS)}, got {skips!r}.")
        if block not in BLOCKS:
            raise ValueError(f"block must be one of {', '.join(BLOCKS)}, got {block!r}.")
        if _layer_name("act", act) == "geglu":
            raise ValueError("act must keep the number of channels; geglu halves it.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout!r}.")
        switches = {"deep_supervision": deep_supervision, "bias": bias, "use_checkpoint": use_checkpoint}
        for name, value in switches.items():
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}.")
        channels = _widths("channels", channels)
        if len(channels) < 2:
            raise ValueError(f"channels must have at least 2 entries (one level), got {channels}.")
        depth = len(channels) - 1
        stride = _per_axis_and_row("strides", strides, depth, spatial_dims)
        kernel = _per_axis_and_row("kernel_size", kernel_size, depth + 1, spatial_dims)
        if any(k % 2 == 0 for row in kernel for k in row):
            raise ValueError(f"kernel_size must be odd on every axis, got {kernel_size}.")
        up_width = channels[:-1] if up_channels is None else _widths("up_channels", up_channels)
        if len(up_width) != depth:
            raise ValueError(
                f"up_channels must have one entry per row 0..{depth - 1}, so {depth}, got {up_channels}."
            )
        last_width = _widths("last_channels", [channels[0] if last_channels is None else last_channels])[0]
        _widths("in_channels, out_channels", [in_channels, out_channels])
        column = channels  # widths of column 0
        if encoder is not None:
            maps = backbone_widths(encoder)
            if depth > len(maps):
                raise ValueError(
                    f"channels must have at most {len(maps) + 1} entries, row 0 and the {len(maps)} feature "
                    f"maps of {encoder}, got {channels}."
                )
            if any(step != 2 for row in stride for step in row):
                raise ValueError(f"strides must be 2, those of {encoder}, got {strides}.")
            column = (channels[0], *maps[:depth])
        elif pretrained:
            raise ValueError("pretrained must be False without an encoder: there are no weights for ours.")

        self.arguments = dict[str, Any](
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            channels=channels,
            strides=stride,
            kernel_size=kernel,
            skips=skips,
            deep_supervision=deep_supervision,
            act=act,
            norm=norm,
            dropout=dropout,
            bias=bias,
            upsample=upsample,
            use_checkpoint=use_checkpoint,
            up_channels=up_width,
            last_channels=last_width,
            block=block,
            encoder=encoder,
            pretrained=False,  # of a network that is made again: its weights follow
        )
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.depth = depth
        self.skips = skips
        self.deep_supervision = deep_supervision
        self._level = depth
        self._first_level = 1 if deep_supervision else depth
        self._divisors = [  # from the input to row i, per axis
            [math.prod(row[axis] for row in stride[:i]) for axis in range(spatial_dims)]
            for i in range(depth + 1)
        ]
        self._norm = _layer_name("norm", norm)
        self._backbone = encoder is not None

        # (i, j) of every node, diagonal by diagonal, each from the bottom up
        built = [k for k in range(1, depth + 1) if k >= self._first_level or skips != "long"]
        self._places = [(k - j, j) for k in built for j in range(1, k + 1)]

        self.encoder = nn.ModuleList()
        self.nodes = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        settings: dict[str, Any] = {
            "block": block,
            "act": act,
            "norm": norm,
            "bias": bias,
            "dropout": dropout,
        }
        rows = depth + 1 if encoder is None else 1
        for i in range(rows):
            self.encoder.append(
                EncoderRow(
                    spatial_dims,
                    in_channels=channels[i - 1] if i else in_channels,
                    out_channels=channels[i],
                    stride=stride[i - 1] if i else None,
                    kernel_size=kernel[i],
                    **settings,
                )
            )
        if encoder is not None:
            self.encoder.extend(backbone_stages(encoder, spatial_dims, in_channels, pretrained)[:depth])
        for i, j in self._places:
            start, stop = {"dense": (0, j), "short": (j - 1, j), "long": (0, 1)}[skips]
            self.nodes[f"x_{i}_{j}"] = Node(
                skips=(start, stop),
                spatial_dims=spatial_dims,
                below_channels=column[i + 1] if j == 1 else channels[i + 1],
                up_channels=up_width[i],
                skip_channels=[channels[i] if n else column[i] for n in range(start, stop)],
                out_channels=last_width if j == depth else channels[i],
                stride=stride[i],
                upsample=upsample,
                kernel_size=kernel[i],
                **settings,
            )
        for node in (*self.encoder, *self.nodes.values()):
            if isinstance(node, kernels.Checkpointed):
                node.use_checkpoint = use_checkpoint
        for k in range(self._first_level, depth + 1):
            width = last_width if k == depth else channels[0]
            self.heads[str(k - 1)] = Conv["conv", spatial_dims](width, out_channels, 1)

    @property
    def level(self) -> int:
        """The level that evaluation computes, ``1 <= level <= depth``; the depth by default."""
        return self._level

    @level.setter
    def level(self, level: int) -> None:
        self._level = self.check_level(level)

    @torch.jit.unused
    def check_level(self, level: int) -> int:
        """Return ``level``; raise a ValueError if the network has no head there."""
        if isinstance(level, bool) or not isinstance(level, int):
            raise ValueError(f"level must be an int, got {level!r}.")
        if not self._first_level <= level <= self.depth:
            has = ", ".join(str(int(key) + 1) for key in self.heads)
            why = "" if self.deep_supervision else " (deep_supervision is off)"
            raise ValueError(f"level must be one of the network's heads, {has}{why}, got {level}.")
        return level

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment ``x``.

        Args:
            x: (B, in_channels, *spatial), of any size, whether the strides divide it or not.

        Returns:
            Logits (B, out_channels, *spatial). In training with deep supervision a list, deepest first;
            otherwise one tensor, of :attr:`level` in evaluation and of the deepest level in training.

        Raises:
            ValueError: if ``x`` has the wrong number of axes or channels, or an axis too short for the norm.
        """
        if self.training:
            heads = self._heads(x, self._first_level, self.depth)
            if self.deep_supervision:
                return heads
            return heads[0]
        return self._heads(x, self._level, self._level)[0]

    @torch.jit.export
    def all_heads(self, x: Tensor) -> list[Tensor]:
        """Return the logits of every head, deepest first, in any mode; ``x`` and shapes as in ``forward``."""
        return self._heads(x, self._first_level, self.depth)

    @torch.jit.unused
    def diagonals(self, x: Tensor) -> Generator[Tensor, Tensor | None, None]:
        """Yield the logits of L^1, L^2, ... up to :attr:`level`: each costs one more diagonal of nodes.

        What is sent into the generator, indices of samples of the batch, goes on without the others; a
        sample that is dropped costs nothing from there on, and nothing is computed twice.

        Args:
            x: (B, in_channels, *spatial), as for ``forward``.

        Yields:
            Logits (B', out_channels, *spatial) of the samples that went on, equal to those of ``forward``.

        Raises:
            ValueError: if ``deep_supervision`` is off: there are no heads to stop at; or as ``forward``.

        Example:
            >>> net = UNetPlusPlus(2, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=2)
            >>> diagonals = net.diagonals(torch.zeros(3, 1, 16, 16))
            >>> tuple(next(diagonals).shape), tuple(diagonals.send(torch.tensor([0, 2])).shape)
            ((3, 2, 16, 16), (2, 2, 16, 16))
        """
        if self._first_level > 1:
            raise ValueError("deep_supervision is off: there are no heads above the deepest to stop at.")
        self._check_input(x, self._level)
        image = kernels.enter(x)
        rows = [[self.encoder[0](image)]]
        for k in range(1, self._level + 1):
            y = self.encoder[k](image if self._backbone and k == 1 else rows[-1][0])
            rows.append([y])
            for j in range(1, k + 1):
                y = self.nodes[f"x_{k - j}_{j}"](rows[k - j], y)
                rows[k - j].append(y)
            kept = yield kernels.leave(self._head(k, y), x)
            if kept is not None:
                rows = [[y[kept] for y in row] for row in rows]

    def _heads(self, x: Tensor, lowest: int, level: int) -> list[Tensor]:
        """Return the logits of levels ``lowest`` .. ``level``, deepest first."""
        if torch.jit.is_scripting():
            self._check_input(x, level)
            image = x
        else:
            if mode.is_eager():
                self._check_input(x, level)
            image = kernels.enter(x)
        y = image
        rows: list[list[Tensor]] = []  # rows[i] = X^{i,0}, X^{i,1}, ...
        for i, encoder in enumerate(self.encoder):
            if i <= level:
                y = encoder(image if self._backbone and i == 1 else y)
                rows.append([y])
        logits: list[Tensor] = []
        for n, node in enumerate(self.nodes.values()):
            i, j = self._places[n]
            k = i + j
            if k <= level and (k >= lowest or self.skips != "long"):
                if j == 1:
                    y = rows[i + 1][0]
                y = node(rows[i], y)  # the node below is the one before it
                rows[i].append(y)
                if k == level:
                    rows[i].clear()  # nobody else reads this row: free it
                if i == 0 and k >= lowest:
                    logits.append(self._head(k, y))  # at once, so that backward has one at a time
        logits.reverse()
        return logits if torch.jit.is_scripting() else [kernels.leave(y, x) for y in logits]

    def _head(self, k: int, y: Tensor) -> Tensor:
        logits = y
        for n, head in enumerate(self.heads.values()):
            if n + self._first_level == k:
                logits = head(y) if torch.jit.is_scripting() else kernels.convolve_one(head, y)
        return logits

    def _check_input(self, x: Tensor, level: int) -> None:
        if x.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"x must have {self.spatial_dims + 2} axes (B, C, *spatial), got {x.dim()}: {list(x.shape)}."
            )
        if x.shape[1] != self.in_channels:
            raise ValueError(f"x must have in_channels = {self.in_channels} on axis 1, got {x.shape[1]}.")
        instance = self._norm == "instance"
        if instance or (self.training and (self._norm == "batch" or self._backbone)):
            samples = 1 if instance else x.shape[0]  # of one channel of row `level`
            divisor = self._divisors[level]
            for axis in range(self.spatial_dims):
                samples *= (x.shape[2 + axis] + divisor[axis] - 1) // divisor[axis]
            if samples < 2:
                axis = self.spatial_dims - 1
                raise ValueError(
                    f"axis {2 + axis} of x is too short: {list(x.shape[2:])} leaves one voxel in "
                    f"row {level}, where {'instance' if instance else 'batch'} norm needs two; "
                    f"a size of at least {divisor[axis] + 1} would work."
                )


def _layer_name(name: str, layer: tuple[Any, ...] | str | None) -> str:
    """Of a layer as MONAI's factories take it: its name, or that and its arguments."""
    if isinstance(layer, (tuple, list)) and not layer:
        raise ValueError(f"{name} must be a name, (name, arguments) or None, got {layer!r}.")
    return str(layer[0] if isinstance(layer, (tuple, list)) else layer).lower()


def _widths(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    if isinstance(widths, (str, int)) or not all(
        type(width) is int and width > 0 for width in widths
    ):  # no bool
        raise ValueError(f"{name} must be positive ints, got {widths!r}.")
    return tuple(widths)


def _per_axis_and_row(
    name: str, value: int | Sequence[PerAxis], rows: int, axes: int
) -> tuple[tuple[int, ...], ...]:
    """Spell out an int, or one entry per row, each an int or one per axis, as one tuple per row."""
    entries = [value] * rows if isinstance(value, int) else list(value)
    if len(entries) != rows:
        raise ValueError(
            f"{name} must be an int or have {rows} entries for these channels, got {len(entries)}: {value}."
        )
    spelled = []
    for entry in entries:
        row = (entry,) * axes if isinstance(entry, int) else tuple(entry)
        if len(row) != axes:
            raise ValueError(f"each entry of {name} must be an int or {axes} ints, got {entry!r}.")
        spelled.append(_widths(name, row))
    return tuple(spelled)
