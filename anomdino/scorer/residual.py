"""RPL's residual anomaly block, and what a scorer with a decoder offers to its training.

Source: Liu et al., "Residual Pattern Learning for Pixel-wise Out-of-Distribution Detection in Semantic
Segmentation", ICCV 2023. Sections such as a.4 are those of the specification of the published behaviour.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from anomdino.errors import ConfigError
from anomdino.scorer.base import Scorer, ScorerOutput, enlarged, resize


class ClosedSetFeatures(NamedTuple):
    """Features of the closed-set path.

    Attributes:
        deep: z, what context module and residual block read, (B, D, h, w).
        decoder: d, what the shared head reads, (B, K, h', w').
    """

    deep: Tensor
    decoder: Tensor


class ProjectionHead(nn.Module):
    """CoroCL's 1x1 projection with bias; its parameters are named ``proj.0.*`` as in RPL."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h, w)."""
        projected: Tensor = self.proj(maps)
        return projected


class ResidualBlock(nn.Module):
    """The trainable part of RPL: a context module of its own, added to the decoder's features.

    ``q = resize(bot_atten_aspp(atten_aspp(z)))``, ``r = atten_aspp_final(q)``, ``projection = proj_head(q)``.
    Parameter names are RPL's.

    Args:
        context: Twin of the closed-set context module (ASPP), with its own weights.
        context_channels: Channels that ``context`` puts out.
        reduced_channels: Channels of q.
        decoder_channels: K, channels of the decoder's features; also those of the projection.
    """

    def __init__(
        self, context: nn.Module, context_channels: int, reduced_channels: int, decoder_channels: int
    ) -> None:
        super().__init__()
        self.atten_aspp = context
        self.bot_atten_aspp = nn.Conv2d(context_channels, reduced_channels, 1, bias=False)
        self.atten_aspp_final = nn.Conv2d(reduced_channels, decoder_channels, 1, bias=False)
        self.proj_head = ProjectionHead(reduced_channels, decoder_channels)
        initialise_residual(self)

    def forward(self, deep: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Compute the residual and, in training mode, the projection.

        Args:
            deep: z, (B, D, h, w).
            size: (h', w') of the decoder's features.

        Returns:
            r (B, K, h', w') and the projection (B, K, h', w') or ``None``.
        """
        reduced = resize(self.bot_atten_aspp(self.atten_aspp(deep)), size)
        return self.atten_aspp_final(reduced), self.proj_head(reduced) if self.training else None


def initialise_residual(block: nn.Module) -> None:
    """Draw every convolution's weight by Kaiming's normal rule, set biases to zero (a.4, a.5)."""
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class DecoderScorer(Scorer):
    """A scorer whose decoder's head serves both paths: Z = head(d), Zr = head(d + r).

    A subclass implements :meth:`closed_set_features` and stores its parts as ``residual_block`` (a
    :class:`ResidualBlock`), ``encoder``, ``final`` (the head), ``aspp`` and ``bot_aspp``, or overrides
    :meth:`residual_module`, :meth:`encoder_parameters`, :meth:`head` and :meth:`closed_set_context`.
    """

    @abstractmethod
    def closed_set_features(self, images: Tensor) -> ClosedSetFeatures:
        """Run encoder, context module and skip connection on normalised images (B, 3, H, W)."""

    def head(self, decoder: Tensor) -> Tensor:
        """Map decoder features (B, K, h', w') to logits (B, C, h', w')."""
        logits: Tensor = self.get_submodule("final")(decoder)
        return logits

    def closed_set_context(self) -> tuple[nn.Module, nn.Module]:
        """Give the closed-set twins of the residual block's ``atten_aspp`` and ``bot_atten_aspp``."""
        return self.get_submodule("aspp"), self.get_submodule("bot_aspp")

    def residual_module(self) -> nn.Module:
        """Give the residual block: called like :class:`ResidualBlock`, with children of the same names."""
        block = self.residual_block
        assert isinstance(block, nn.Module)
        return block

    def decode(self, images: Tensor, with_logits: int | None = None) -> ScorerOutput:
        """Compute both sets of logits at the decoder's resolution (h', w').

        Args:
            images: Normalised images (B, 3, H, W).
            with_logits: So many of them, the first ones, get logits; default: all. The projection, which all
                get, needs no head, and the head is the costly part of a small network.
        """
        features = self.closed_set_features(images)
        height, width = features.decoder.shape[-2:]
        residual, projection = self.residual_module()(features.deep, (height, width))
        decoder = features.decoder[:with_logits]
        return ScorerOutput(self.head(decoder), self.head(decoder + residual[:with_logits]), projection)

    def forward(self, images: Tensor) -> ScorerOutput:
        """Compute both sets of logits at the size of the images (see :meth:`Scorer.forward`)."""
        output = self.decode(images)
        size = images.shape[-2:]
        return ScorerOutput(
            enlarged(output.logits, size), enlarged(output.residual_logits, size), output.projection
        )

    def closed_set_logits(self, images: Tensor) -> Tensor:
        """Compute Z alone at the decoder's resolution, without the cost of the residual path."""
        return self.head(self.closed_set_features(images).decoder)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Give the parameters of the pretrained part, which trains at a learning rate of its own."""
        encoder = getattr(self, "encoder", None)
        return list(encoder.parameters()) if isinstance(encoder, nn.Module) else []

    def residual_parameters(self) -> list[nn.Parameter]:
        """Give the parameters of the residual block: all that RPL trains."""
        return list(self.residual_module().parameters())

    def closed_set_parameters(self) -> list[nn.Parameter]:
        """Give every parameter that is not the residual block's."""
        residual = {id(parameter) for parameter in self.residual_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in residual]

    def load_pretrained_encoder(self) -> str:
        """Load the encoder's published weights and give their origin in words.

        Raises:
            ConfigError: There are none for this architecture.
        """
        raise ConfigError(
            type(self).__name__, "has no pretrained encoder", "set rpl.closed_set.pretrained: false"
        )

    def start_residual(self, copy_context: bool = True) -> None:
        """Initialise the residual block as RPL does: Kaiming, context copied from the closed-set path.

        Args:
            copy_context: Copy the closed-set context module and its reduction (a.5); else draw them.
        """
        block = self.residual_module()
        initialise_residual(block)
        if copy_context:
            context, reduction = self.closed_set_context()
            block.get_submodule("atten_aspp").load_state_dict(context.state_dict())
            block.get_submodule("bot_atten_aspp").load_state_dict(reduction.state_dict())

    def train_closed_set(self) -> None:
        """Put everything but the residual block in training mode and let gradients flow there alone."""
        self.train()
        self.residual_module().eval()
        self._set_trainable(closed_set=True)

    def keep_encoder_statistics(self) -> None:
        """Let the encoder's batch normalisations evaluate, so that training leaves their statistics alone."""
        encoder = {id(parameter) for parameter in self.encoder_parameters()}
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and id(module.weight) in encoder:
                module.eval()

    def train_residual(self) -> None:
        """Put the residual block alone in training mode; the rest evaluates, without gradients (b.3)."""
        self.eval()
        self.residual_module().train()
        self._set_trainable(closed_set=False)

    def _set_trainable(self, closed_set: bool) -> None:
        for parameter in self.closed_set_parameters():
            parameter.requires_grad_(closed_set)
        for parameter in self.residual_parameters():
            parameter.requires_grad_(not closed_set)
