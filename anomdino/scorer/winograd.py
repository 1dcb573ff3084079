"""3x3 convolutions by Winograd's minimal filtering F(4x4, 3x3): a quarter of the multiplications, on the CPU.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), section 4. A tile of
4 x 4 outputs is ``A^T [ (G g G^T) * (B^T d B) ] A`` of a 6 x 6 input tile d and the kernel g; summed over
channels, the products become 36 matrix products.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

OUT, IN, TAPS = 4, 6, 3
POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
"""Where the polynomials are evaluated, besides infinity. In float32 these leave under half the rounding error
of the usual 0, 1, -1, 2, -2."""

LEAST_CHANNELS = 128
LEAST_DILATED_CHANNELS = 256
LARGEST_DILATION = 4
STORED_WEIGHTS = 1 << 17
TILES_AT_ONCE = 512
TRANSFORMED_AT_ONCE = 1 << 18
SPECTRUM_AT_ONCE = 40 << 20


def toom_cook(points: tuple[float, ...] = POINTS) -> tuple[Tensor, Tensor, Tensor]:
    """Build the transforms of F(4, 3) for five points and infinity.

    Source: Blahut, "Fast Algorithms for Signal Processing" (2010), section 5.2: the product of polynomials is
    interpolated from its values. Rows of B^T are scaled by powers of two, against those of G.

    Returns:
        A^T (4, 6), G (6, 3) and B^T (6, 6), float64.
    """
    values = np.array(points)
    output, kernel, inputs = np.zeros((OUT, IN)), np.zeros((IN, TAPS)), np.zeros((IN, IN))
    for index, point in enumerate(values):
        others = np.delete(values, index)
        output[:, index] = point ** np.arange(OUT)
        kernel[index] = point ** np.arange(TAPS) / np.prod(point - others)
        inputs[index, : IN - 1] = np.poly(others)[::-1]
    output[-1, -1] = kernel[-1, -1] = 1
    inputs[-1] = np.poly(values)[::-1]
    scale = 2.0 ** np.round(np.log2(np.abs(inputs).sum(axis=1, keepdims=True) / 2))
    return torch.from_numpy(output), torch.from_numpy(kernel * scale), torch.from_numpy(inputs / scale)


OUTPUT_TRANSFORM, KERNEL_TRANSFORM, INPUT_TRANSFORM = toom_cook()


def use_winograd(network: nn.Module) -> int:
    """Replace, in place, the convolutions of a network that run faster this way.

    These are 3x3 with stride 1, padding equal to a dilation of at most 4, no groups, and at least 128
    channels on both sides (256 with a dilation), in float32 on the CPU.

    Returns:
        The number of convolutions replaced.
    """
    return replace_convolutions(network, suits, WinogradConv2d)


def replace_convolutions(
    network: nn.Module, suits: Callable[[nn.Conv2d], bool], stand_in: Callable[[nn.Conv2d], nn.Module]
) -> int:
    """Put ``stand_in(convolution)`` in the place of every convolution of a network that suits.

    Returns:
        The number of convolutions replaced.
    """
    replaced = 0
    for name, child in network.named_children():
        if isinstance(child, nn.Conv2d) and suits(child):
            setattr(network, name, stand_in(child))
            replaced += 1
        else:
            replaced += replace_convolutions(child, suits, stand_in)
    return replaced


def suits(convolution: nn.Conv2d) -> bool:
    """Say whether a convolution can be computed by :class:`WinogradConv2d`, and faster."""
    return keeps_size(convolution) and convolution.dilation[0] <= LARGEST_DILATION


def keeps_size(convolution: nn.Conv2d) -> bool:
    """Say whether a convolution is 3x3, wide, float32 on the CPU, and padded by zeros to keep the size."""
    dilation = convolution.dilation[0]
    least = LEAST_CHANNELS if dilation == 1 else LEAST_DILATED_CHANNELS
    return (
        convolution.kernel_size == (3, 3)
        and convolution.stride == (1, 1)
        and convolution.dilation == (dilation, dilation)
        and convolution.padding == (dilation, dilation)
        and convolution.padding_mode == "zeros"
        and convolution.groups == 1
        and min(convolution.in_channels, convolution.out_channels) >= least
        and convolution.weight.dtype == torch.float32
        and convolution.weight.device.type == "cpu"
    )


def transformed(kernels: Tensor) -> Tensor:
    """Transform kernels (3, 3, C, K) to G g G^T, (6, 6, C, K)."""
    _, _, inputs, outputs = kernels.shape
    transform = KERNEL_TRANSFORM.to(kernels.dtype)
    rows = torch.mm(transform, kernels.reshape(TAPS, -1))
    return torch.matmul(transform, rows.view(IN, TAPS, -1)).view(IN, IN, inputs, outputs)


class WinogradConv2d(nn.Module):
    """Stands for a 3x3 convolution of stride 1 that keeps the size; for inference alone.

    Transformed kernels take four times the memory: only those of small convolutions are kept, others are
    transformed at every call, in parts.

    Args:
        convolution: The convolution whose place it takes.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.dilation = convolution.dilation[0]
        self.out_channels = convolution.out_channels
        weight = convolution.weight.detach()
        kernels = weight.permute(2, 3, 1, 0).contiguous()  # (3, 3, C, K)
        self.stored = weight.shape[0] * weight.shape[1] < STORED_WEIGHTS
        self.register_buffer("kernels", transformed(kernels.double()).float() if self.stored else kernels)
        self.bias = None if convolution.bias is None else convolution.bias.detach()
        self.register_buffer("input_transform", INPUT_TRANSFORM.float())
        self.register_buffer("output_transform", OUTPUT_TRANSFORM.float())

    kernels: Tensor
    input_transform: Tensor
    output_transform: Tensor

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, K, H, W), channels-last."""
        outputs = [self._convolve(image)[None] for image in maps.permute(0, 2, 3, 1)]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).permute(0, 3, 1, 2)

    def _convolve(self, image: Tensor) -> Tensor:
        """Convolve one image (H, W, C) in strips of tiles.

        With dilation d the pixels fall into d x d interleaved images without dilation. Those that share their
        rows lie side by side in the padded copy, so that one line of tiles covers all of them; one tile
        between two of them is computed in vain.
        """
        d = self.dilation
        height, width, channels = image.shape
        tall, wide = _ceil(_ceil(height, d), OUT), _ceil(_ceil(width, d), OUT) + 1
        result = image.new_empty(d * OUT * tall, d, OUT * wide, self.out_channels)
        lines = [phase + d * OUT * line for line in range(tall) for phase in range(d)]
        at_once = TILES_AT_ONCE if self.stored else SPECTRUM_AT_ONCE // (IN * IN * channels)
        strip = max(1, at_once // (d * wide))
        step = max(1, self.out_channels if self.stored else TRANSFORMED_AT_ONCE // channels)
        for start in range(0, len(lines), strip):
            part = lines[start : start + strip]
            spectrum = self._spectrum(self._padded(image, part, OUT * wide), part)
            for first in range(0, self.out_channels, step):
                self._products(spectrum, slice(first, first + step), part, result)
            del spectrum
        if self.bias is not None:
            result += self.bias
        if d == 1:
            return result[:height, 0, :width]
        output = image.new_empty(height, width, self.out_channels)
        for phase in range(d):
            target = output[:, phase::d]
            target.copy_(result[:height, phase, : target.shape[1]])
        return output

    def _padded(self, image: Tensor, lines: list[int], width: int) -> Tensor:
        """Copy the rows that some lines of tiles read, zeros around the image: (rows, d, width, C)."""
        d = self.dilation
        top, bottom = lines[0] - d, lines[-1] + (IN - 2) * d + 1
        first, last = max(0, top), min(image.shape[0], bottom)
        padded = image.new_zeros(bottom - top, d, width, image.shape[2])
        for phase in range(d):
            columns = image[first:last, phase::d]
            padded[first - top : last - top, phase, 1 : 1 + columns.shape[1]] = columns
        return padded

    def _spectrum(self, padded: Tensor, lines: list[int]) -> Tensor:
        """Transform the tiles of some lines: (6, tiles, 6, C)."""
        _, phases, width, channels = padded.shape
        size = phases * width * channels
        tiles = len(lines) * phases * width // OUT
        flat = padded.new_empty(IN * len(lines) * size + 2 * channels)
        flat[-2 * channels :] = 0
        rows = flat[: IN * len(lines) * size].view(IN, len(lines), size)
        for index, line in enumerate(lines):
            source = padded.as_strided((IN, size), (self.dilation * size, 1), (line - lines[0]) * size)
            torch.mm(self.input_transform, source, out=rows[:, index])
        overlapping = flat.as_strided((IN * tiles, IN, channels), (OUT * channels, channels, 1))
        spectrum = torch.bmm(self.input_transform.expand(IN * tiles, IN, IN), overlapping)
        return spectrum.view(IN, tiles, IN, channels)

    def _products(self, spectrum: Tensor, channels: slice, lines: list[int], result: Tensor) -> None:
        """Multiply, transform back, and write some output channels of some lines."""
        kernels = self.kernels if self.stored else transformed(self.kernels[..., channels])
        tiles, count = spectrum.shape[1], kernels.shape[3]
        products = spectrum.new_empty(IN, tiles, IN, count)
        for index in range(IN):
            torch.bmm(spectrum[index].permute(1, 0, 2), kernels[index], out=products[index].permute(1, 0, 2))
        across = torch.bmm(
            self.output_transform.expand(IN * tiles, OUT, IN), products.view(IN * tiles, IN, count)
        )
        rows = across.view(IN, len(lines), -1)
        size = result.stride(0)
        for index, line in enumerate(lines):
            target = result.as_strided((OUT, size), (self.dilation * size, 1), line * size)
            if count == self.out_channels:
                torch.mm(self.output_transform, rows[:, index], out=target)
            else:
                block = torch.mm(self.output_transform, rows[:, index])
                target.view(OUT, -1, self.out_channels)[..., channels] = block.view(OUT, -1, count)


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)
