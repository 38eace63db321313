"""Tokens that stand for several: which are in which, and where they are.

Shapes: B batch, S tokens of the whole sequence, T tokens that are left, H heads, D hidden size.
"""

from typing import Any, NamedTuple, Protocol

import torch

from .token_merging import TokenMerging
from .token_pruning import ClassAttentionPruning
from .token_schedule import kept_in_layers, merged_in_layers, token_reduction


class TokenGroups(NamedTuple):
    """What became of the tokens of the whole sequence.

    Args:
        group: shape (batch, tokens of the whole sequence): the index of the token that each is in, -1 if it is in
            none.
        position: shape (batch, tokens): the index in the whole sequence of the token whose position each has.
        sizes: shape (batch, tokens): how many each stands for, where they count by it; None where they do not. All
            three are of integers, which gradient checkpointing gives no gradient.
    """

    group: torch.Tensor
    position: torch.Tensor
    sizes: torch.Tensor | None = None

    @classmethod
    def whole(cls, hidden_states: torch.Tensor, num_tokens: Any, kept: torch.Tensor | None) -> "TokenGroups":
        """Groups of one token each.

        Args:
            hidden_states: shape (batch, tokens, hidden_size).
            num_tokens: of the whole sequence.
            kept: the indices of those that are left, shape (batch, tokens), where some were dropped.
        """
        position = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        position = position.expand(hidden_states.shape[0], -1)
        if kept is None:
            return cls(position, position)
        nowhere = torch.full((kept.shape[0], num_tokens), -1, dtype=torch.long, device=kept.device)
        return cls(nowhere.scatter(1, kept, position), kept)

    def moved(self, moves: torch.Tensor, position: torch.Tensor, sizes: torch.Tensor | None) -> "TokenGroups":
        """The groups after a step.

        Args:
            moves: shape (batch, tokens): for each token of before the index of the one that it is in now, or -1.
            position, sizes: of the tokens now.
        """
        group = torch.where(self.group < 0, self.group, moves.gather(1, self.group.clamp(min=0)))
        return TokenGroups(group, position, sizes)

    def of_pairs(self, position_bias: torch.Tensor) -> torch.Tensor:
        """Bias of the pairs of groups, the mean of their members' pairs: (1, heads, tokens of the whole sequence,
        tokens of the whole sequence) -> (batch, heads, tokens, tokens)."""
        groups = torch.arange(self.position.shape[1], device=self.group.device)
        members = (self.group[:, None, :] == groups[:, None]).to(position_bias.dtype)  # (B, T, S)
        means = (members / members.sum(2, keepdim=True))[:, None]  # (B, 1, T, S)
        return means @ position_bias @ means.transpose(2, 3)


def ungrouped(tokens: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Give every token of the whole sequence what its group has: (batch, tokens, size) -> (batch, tokens of the whole
    sequence, size).

    Args:
        group: see [`TokenGroups`], without -1.
    """
    return tokens.gather(1, group[:, :, None].expand(-1, -1, tokens.shape[2]))


class TokenReduction(Protocol):
    """A way to go on with fewer tokens, between a layer's attention and its MLP."""

    def measure(self, query: torch.Tensor, key: torch.Tensor, position_bias: torch.Tensor | None) -> torch.Tensor:
        """What is to be known of the layer's attention: from queries and keys (batch, heads, tokens, head size) and
        what is added to the scores, (1 or batch, heads, tokens, tokens)."""

    def __call__(
        self, hidden_states: torch.Tensor, groups: TokenGroups, measured: torch.Tensor
    ) -> tuple[torch.Tensor, TokenGroups]:
        """(batch, tokens, hidden_size) -> (batch, fewer tokens, hidden_size), and what became of them."""


def token_reductions(config: Any, num_patches: Any) -> list[TokenReduction | None]:
    """What each layer does to its tokens, by the configuration as it is now.

    Args:
        num_patches: before the first layer.

    Raises:
        ValueError: if a schedule has not one value for each layer.
    """
    reductions: list[TokenReduction | None] = [None] * config.num_hidden_layers
    num_prefix, method = config.num_layer_prefix_tokens, token_reduction(config)
    if method == "token_pruning_keep_rate":
        for layer, number in enumerate(kept_in_layers(config, num_patches)):
            if number is not None:
                reductions[layer] = ClassAttentionPruning(number, num_prefix, config.class_token_index)
    if method == "token_merging_r":
        for layer, number in enumerate(merged_in_layers(config, num_patches)):
            if not isinstance(number, int) or number > 0:
                reductions[layer] = TokenMerging(number, num_prefix)
    return reductions


__all__ = ["TokenGroups", "TokenReduction", "token_reductions", "ungrouped"]
