"""3x3 convolutions by Winograd's minimal filtering F(4x4, 3x3): a quarter of the multiplications, on the CPU.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), section 4. A tile of
4 x 4 outputs is ``A^T [ (G g G^T) * (B^T d B) ] A`` of a 6 x 6 input tile d and the kernel g; summed over
channels, the products become 36 matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

OUT, IN = 4, 6
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))

LEAST_CHANNELS = 256
LARGEST_DILATION = 4
STORED_WEIGHTS = 1 << 20
TILES_AT_ONCE = 512


def use_winograd(network: nn.Module) -> int:
    """Replace, in place, the convolutions of a network that run faster this way.

    These are 3x3 with stride 1, padding equal to a dilation of at most 4, no groups, and at least 256
    channels on both sides, in float32 on the CPU.

    Returns:
        The number of convolutions replaced.
    """
    replaced = 0
    for name, child in network.named_children():
        if isinstance(child, nn.Conv2d) and suits(child):
            setattr(network, name, WinogradConv2d(child))
            replaced += 1
        else:
            replaced += use_winograd(child)
    return replaced


def suits(convolution: nn.Conv2d) -> bool:
    """Say whether a convolution can be computed by :class:`WinogradConv2d`, and faster."""
    dilation = convolution.dilation[0]
    return (
        convolution.kernel_size == (3, 3)
        and convolution.stride == (1, 1)
        and convolution.dilation == (dilation, dilation)
        and convolution.padding == (dilation, dilation)
        and convolution.padding_mode == "zeros"
        and dilation <= LARGEST_DILATION
        and convolution.groups == 1
        and min(convolution.in_channels, convolution.out_channels) >= LEAST_CHANNELS
        and convolution.weight.dtype == torch.float32
        and convolution.weight.device.type == "cpu"
    )


def transformed(weight: Tensor) -> Tensor:
    """Transform kernels (K, C, 3, 3) to G g G^T, (6, 6, C, K)."""
    outputs, inputs = weight.shape[:2]
    kernel = weight.new_tensor(_KERNEL)
    rows = torch.mm(kernel, weight.permute(2, 3, 1, 0).reshape(3, -1))
    return torch.matmul(kernel, rows.view(IN, 3, -1)).view(IN, IN, inputs, outputs)


class WinogradConv2d(nn.Module):
    """Stands for a 3x3 convolution of stride 1 that keeps the size; for inference alone.

    Transformed kernels take four times the memory: those of large convolutions are transformed at every call,
    in parts.

    Args:
        convolution: The convolution whose place it takes.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.dilation = convolution.dilation[0]
        self.out_channels = convolution.out_channels
        weight = convolution.weight.detach()
        self.stored = weight.shape[0] * weight.shape[1] < STORED_WEIGHTS
        self.register_buffer("kernels", transformed(weight) if self.stored else weight.clone())
        self.bias = None if convolution.bias is None else convolution.bias.detach()
        self.register_buffer("input_transform", torch.tensor(_INPUT, dtype=torch.float32))
        self.register_buffer("output_transform", torch.tensor(_OUTPUT, dtype=torch.float32))

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
        strip = max(1, TILES_AT_ONCE // (d * wide))
        step = max(1, self.out_channels if self.stored else STORED_WEIGHTS // (2 * channels))
        for start in range(0, len(lines), strip):
            part = lines[start : start + strip]
            spectrum = self._spectrum(self._padded(image, part, OUT * wide), part)
            for first in range(0, self.out_channels, step):
                self._products(spectrum, slice(first, first + step), part, result)
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
        kernels = self.kernels[..., channels] if self.stored else transformed(self.kernels[channels])
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
