# SPDX-License-Identifier: Apache-2.0
r"""The triangle: every depth of U-Net inside one network.

X^{0,0}  X^{0,1}  X^{0,2}  X^{0,3}  X^{0,4}      row i   = resolution, 0 is the input's
X^{1,0}  X^{1,1}  X^{1,2}  X^{1,3}               column j = dense step; column 0 is the encoder
X^{2,0}  X^{2,1}  X^{2,2}                        head k  = 1x1 convolution on X^{0,k}
X^{3,0}  X^{3,1}                                 level k = all nodes with i + j <= k
X^{4,0}
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from torch import Tensor, nn

from monai_unetpp.network import kernels
from monai_unetpp.network.blocks import HEAD
from monai_unetpp.network.building import build_encoder, build_node
from monai_unetpp.network.spec import PerAxis, Spec

__all__ = ["UNetPlusPlus"]


class UNetPlusPlus(nn.Module):
    """UNet++ in 2D or 3D, of any depth, trained on all heads and evaluated at any level.

    In training with deep supervision, ``net(x)`` is a list of logits, one per level, **deepest first**, up to
    :attr:`training_level`.
    In evaluation it is one tensor: the logits of :attr:`level`. :meth:`all_heads` is the list in any mode.
    A node exists only if a head depends on it, so every parameter of the network receives a gradient.

    Args:
        spatial_dims: Number of spatial axes, 2 or 3.
        in_channels: Number of channels of the input.
        out_channels: Number of classes, background included; 1 for a sigmoid.
        channels: Width of each row, finest first; its length less one is the number of levels ``L``.
        strides: Strides between rows ``i`` and ``i + 1``: an int for all, or a sequence of ``L`` entries,
            each an int or one per axis, such as ``[(2, 2, 1), 2, 2, 2]`` for CT of thick slices.
        kernel_size: Size of the convolutions: an odd int for all rows, or a sequence of ``L + 1`` entries,
            each an odd int or one per axis.
        skips: Maps of row ``i`` that enter node ``(i, j)``: ``"dense"`` all before it (UNet++), ``"short"``
            the one before it (UNet+, Deep Layer Aggregation), ``"long"`` the encoder's (U-Net^e; with deep
            supervision off, the plain U-Net).
        deep_supervision: Whether every level has a head, or only the deepest one.
        act: Activation, as MONAI's ``Act`` factory takes it.
        norm: Normalisation, as MONAI's ``Norm`` factory takes it; ``None`` for none.
        dropout: Probability of dropout after each norm; 0 for none.
        bias: Whether the convolutions have a bias.
        upsample: ``"deconv"``, ``"nontrainable"`` or ``"pixelshuffle"``, as MONAI's ``UpSample`` takes it.
        use_checkpoint: Whether to use activation checkpointing: training computes each node twice, to keep
            only the nodes' results in memory.
        up_channels: Channels of the upsampled map that enters row ``i``, one per row 0 .. L-1; default the
            row's width.
        last_channels: Width of the last node ``X^{0,L}``; default ``channels[0]``. It and ``up_channels``
            exist to hold weights of MONAI's ``BasicUNetPlusPlus``.
        block: Kind of node: ``"conv"``, two convolutions; ``"residual"``, with a 1x1 convolution around them;
            or ``"dense"``, whose second convolution also receives the input of the first.
        encoder: Name of a backbone that MONAI's ``FlexibleUNet`` knows, such as ``"resnet18"`` or
            ``"efficientnet-b0"``: rows 1, 2, ... of column 0 are its feature maps, of which there are 5.
            Row 0 stays ours: backbones begin at half of the input's size. ``strides`` must be 2.
        pretrained: Whether the backbone begins with MONAI's weights, downloaded; see
            :func:`~monai_unetpp.network.backbones.backbone_stages`.

    Raises:
        ValueError: If an argument is out of range or lengths do not agree.

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
        given = locals()  # the arguments, by name
        super().__init__()
        self.spec = spec = Spec(**{name: given[name] for name in Spec.names()})
        self.arguments = spec.arguments()
        self.spatial_dims, self.in_channels, self.depth = spatial_dims, in_channels, spec.depth
        self.skips, self.deep_supervision = skips, deep_supervision
        self._level, self._training_level, self._first_level = spec.depth, spec.depth, spec.levels[0]
        self._norm, self._has_backbone = spec.norm_name, encoder is not None
        self._divisors = [spec.divisors(k) for k in range(spec.depth + 1)]
        self._places = spec.nodes
        self.encoder = build_encoder(spec)
        self.nodes = nn.ModuleDict({f"x_{i}_{j}": build_node(spec, i, j) for i, j in spec.nodes})
        self.heads = nn.ModuleDict(
            {str(k - 1): HEAD[spatial_dims](spec.width(0, k), out_channels, 1) for k in spec.levels}
        )
        for module in self.modules():
            if isinstance(module, kernels.Checkpointed):
                module.use_checkpoint = use_checkpoint

    @kernels.call_in_python  # type: ignore[prop-decorator]
    @property
    def level(self) -> int:
        """The level that evaluation computes, ``1 <= level <= depth``; the depth by default."""
        return self._level

    @level.setter
    def level(self, level: int) -> None:
        self._level = self.check_level(level)

    @kernels.call_in_python  # type: ignore[prop-decorator]
    @property
    def training_level(self) -> int:
        """The deepest level that training computes, ``1 <= training_level <= depth``; the depth by default.

        Nodes below it get no gradient: distributed training then requires ``find_unused_parameters``.
        """
        return self._training_level

    @training_level.setter
    def training_level(self, level: int) -> None:
        self._training_level = self.check_level(level)

    @kernels.call_in_python
    def check_level(self, level: int) -> int:
        """Return ``level``; raise a ValueError if the network has no head there."""
        if isinstance(level, bool) or not isinstance(level, int):
            raise ValueError(f"level must be an int, got {level!r}.")
        if level not in self.spec.levels:
            has = ", ".join(map(str, self.spec.levels))
            why = "" if self.deep_supervision else " (deep_supervision is off)"
            raise ValueError(f"level must be one of the network's heads, {has}{why}, got {level}.")
        return level

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment ``x``.

        Args:
            x: Images (B, in_channels, *spatial) of any size, whether the strides divide it or not.

        Returns:
            Logits (B, out_channels, *spatial). In training with deep supervision a list, deepest first;
            otherwise one tensor, of :attr:`level` in evaluation and of the deepest level in training.

        Raises:
            ValueError: If ``x`` has the wrong number of axes or channels, or an axis too short for the norm.
        """
        if self.training:
            logits = self._logits(x, self._first_level, self._training_level)
            if self.deep_supervision:
                return logits
            return logits[0]
        return self._logits(x, self._level, self._level)[0]

    @kernels.script_too
    def all_heads(self, x: Tensor) -> list[Tensor]:
        """Return the logits of every head, deepest first, in any mode; ``x`` and shapes as in ``forward``."""
        return self._logits(x, self._first_level, self.depth)

    @kernels.call_in_python
    def diagonals(self, x: Tensor) -> Generator[Tensor, Tensor | None, None]:
        """Yield the logits of L^1, L^2, ... up to :attr:`level`: each costs one more diagonal of nodes.

        Send indices of samples into the generator, and only these samples of the batch continue: a dropped
        sample costs nothing from there on, and nothing is computed twice.

        Args:
            x: Images (B, in_channels, *spatial), as for ``forward``.

        Yields:
            Logits (B', out_channels, *spatial) of the samples that continue, equal to those of ``forward``.

        Raises:
            ValueError: If ``deep_supervision`` is off, so that there are no heads to stop at, or as
                ``forward``.

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
        X = [[self.encoder[0](image)]]
        for k in range(1, self._level + 1):
            self._add_to_encoder(X, image, k)
            self._add_diagonal(X, k, False)
            kept = yield kernels.leave(self._head(X[0][-1], k), x)
            if kept is not None:
                X = [[y[kept] for y in row] for row in X]

    def _logits(self, x: Tensor, first: int, last: int) -> list[Tensor]:
        """Return the logits of levels ``first`` .. ``last``, deepest first."""
        self._check_input(x, last)
        image = kernels.enter(x)
        X = [[self.encoder[0](image)]]  # X[i] = X^{i,0}, X^{i,1}, ...
        logits: list[Tensor] = []
        for k in range(1, last + 1):
            self._add_to_encoder(X, image, k)
        for k in range(1, last + 1):
            if k >= first or self.skips != "long":  # with long skips no diagonal feeds another
                self._add_diagonal(X, k, k == last)
            if k >= first:
                logits.append(kernels.leave(self._head(X[0][-1], k), x))
        logits.reverse()
        return logits

    def _add_to_encoder(self, X: list[list[Tensor]], image: Tensor, k: int) -> None:
        """Append row ``k`` with X^{k,0}."""
        for i, row in enumerate(self.encoder):
            if i == k:
                X.append([row(image if self._has_backbone and k == 1 else X[k - 1][0])])

    def _add_diagonal(self, X: list[list[Tensor]], k: int, is_last: bool) -> None:
        """Append X^{k-1,1}, X^{k-2,2}, ..., X^{0,k} to their rows."""
        for n, node in enumerate(self.nodes.values()):
            i, j = self._places[n]
            if i + j == k:
                X[i].append(node(X[i], X[i + 1][-1]))
                if is_last:  # nothing reads these maps again: free them
                    X[i] = X[i][-1:]
                    X[i + 1] = X[i][:0]

    def _head(self, y: Tensor, k: int) -> Tensor:
        logits = y
        for n, head in enumerate(self.heads.values()):
            if n + self._first_level == k:
                logits = head(y)
        return logits

    def _check_input(self, x: Tensor, level: int) -> None:
        if not kernels.has_sizes():
            return
        if x.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"x must have {self.spatial_dims + 2} axes (B, C, *spatial), got {x.dim()}: {list(x.shape)}."
            )
        if x.shape[1] != self.in_channels:
            raise ValueError(f"x must have in_channels = {self.in_channels} on axis 1, got {x.shape[1]}.")
        instance = self._norm == "instance"
        if instance or (self.training and (self._norm == "batch" or self._has_backbone)):
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
