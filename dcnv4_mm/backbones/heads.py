"""Classification heads of the backbone."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dcnv4_mm.layers import channels_first

__all__ = ["AttentionPoolingHead", "ClassificationHead"]

_NORM_EPS = 1e-6


class ClassificationHead(nn.Module):
    """1x1 convolution, batch norm, GELU, mean over the image, linear classifier."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        hidden_channels = int(1.5 * channels)
        self.conv = nn.Conv2d(channels, hidden_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden_channels)
        self.act = nn.GELU()
        self.fc = nn.Linear(hidden_channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes the linear classifier as the originals do."""
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (N, num_classes) of the last of the stages' maps (N, H, W, C)."""
        x = self.conv(channels_first(maps[-1]))
        return self.fc(self.act(self.norm(x)).mean((2, 3)))


class AttentionPooling(nn.Module):
    """Pools tokens by multi-head attention, whose one query is their mean."""

    def __init__(self, channels: int, out_channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_q = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.norm_k = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.norm_v = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L, channels) to (N, out_channels)."""
        mean = tokens.mean(1, keepdim=True)
        # [N, heads, L or 1, channels / heads]
        query, key, value = (
            project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project, x in (
                (self.q, self.norm_q(mean)),
                (self.k, self.norm_k(tokens)),
                (self.v, self.norm_v(tokens)),
            )
        )
        pooled = F.scaled_dot_product_attention(query, key, value)
        return self.proj(pooled.transpose(1, 2).flatten(1))


class AttentionPoolingHead(nn.Module):
    """Head of InternImage-H: pools the last two stages together, the last one upsampled."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        width, out_channels = 1024, 768
        self.conv_x4 = nn.Conv2d(channels, 4 * width, 1)
        self.conv_x3 = nn.Conv2d(channels // 2, width, 1)
        self.pool = AttentionPooling(width, out_channels, num_heads=16)
        self.fc_norm = nn.LayerNorm(out_channels, eps=_NORM_EPS)
        self.fc = nn.Linear(out_channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes the linear classifier as the originals do."""
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (N, num_classes) of the last two of the stages' maps (N, H, W, C).

        Raises:
            ValueError: The last map is not half as large as the one before it.
        """
        fine, coarse = (channels_first(stage) for stage in maps[-2:])
        if fine.shape[2:] != (2 * coarse.shape[2], 2 * coarse.shape[3]):
            raise ValueError(
                "rows and columns of the images must be multiples of 32, which they are not: the "
                f"last two maps have {tuple(fine.shape[2:])} and {tuple(coarse.shape[2:])} pixels"
            )
        x = F.pixel_shuffle(self.conv_x4(coarse), 2) + self.conv_x3(fine)
        return self.fc(self.fc_norm(self.pool(x.flatten(2).transpose(1, 2))))
