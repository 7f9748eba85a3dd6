"""PatchNCE: a patch of the translation should resemble the same patch of its source most (Park et al. 2020, eq. 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cyclestyle.objectives.terms import Direction


class PatchNCE(nn.Module):
    """Contrastive loss between activations of the generator, projected by a small head for each layer."""

    def __init__(self, layers: Sequence[str], channels: Sequence[int], *, width: int = 64, patches: int = 64) -> None:
        super().__init__()
        self.layers, self.patches = tuple(layers), patches
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(count, width), nn.ReLU(), nn.Linear(width, width)) for count in channels
        )

    def forward(self, direction: Direction) -> Tensor:
        losses = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            fake, source = (
                features[layer].flatten(2).transpose(1, 2)  # (N, positions, channels)
                for features in (direction.fake_features, direction.source_features)
            )
            chosen = torch.randperm(fake.shape[1], device=fake.device)[: self.patches]
            query, key = (F.normalize(head(features[:, chosen]), dim=-1) for features in (fake, source))
            logits = query @ key.detach().transpose(1, 2) / 0.07  # (N, patches, patches)
            target = torch.arange(len(chosen), device=fake.device).expand(len(query), -1)
            losses.append(F.cross_entropy(logits.flatten(0, 1), target.flatten()))
        return torch.stack(losses).mean()
