"""The layers of the Vision Transformer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import MultiHeadAttention
from .cpu_operators import is_watched
from .layers import MLP, DropPath, LayerScale, make_norm
from .position_encoding import MixedRotaryPosition, RelativePositionBias
from .token_reduction import TokenGroups, TokenReduction
from .vit_attention import ClassAttention, make_attention
from .vit_tokens import of_kept_pairs, of_kept_tokens


class _PreNormLayer(GradientCheckpointingLayer):
    """Attention and MLP, each with layer scale, dropout and drop path on its branch."""

    def __init__(self, config: Any, attention: MultiHeadAttention, drop_path_rate: float):
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = attention
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            bias=config.mlp_bias,
            norm=make_norm(config, config.intermediate_size) if config.mlp_hidden_norm else None,
        )
        self.layer_scale1, self.layer_scale2 = self._layer_scale(config), self._layer_scale(config)
        self.residual_scale = config.residual_scale
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    @staticmethod
    def _layer_scale(config: Any) -> nn.Module:
        value = config.layer_scale_init_value
        return nn.Identity() if value is None else LayerScale(config.hidden_size, value)

    def _add_attention(self, hidden_states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        return hidden_states + self._scaled(self.drop_path(self.dropout(self.layer_scale1(attended))))

    def _add_mlp(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.training:
            kept = self._kept_samples(hidden_states, self.mlp_norm, self.mlp, self.layer_scale2)
            if kept is not None:
                return self._add_to_kept(
                    hidden_states, *kept, lambda states: self.layer_scale2(self.mlp(self.mlp_norm(states)))
                )
        states = self.mlp_norm(hidden_states)
        if self._adds_mlp_as_it_is():
            return self.mlp(states, hidden_states)
        branch = self.mlp(states)
        return hidden_states + self._scaled(self.drop_path(self.dropout(self.layer_scale2(branch))))

    def _kept_samples(self, hidden_states: torch.Tensor, *branch: nn.Module) -> tuple[torch.Tensor, float] | None:
        """See [`DropPath.kept_samples`]; None too where somebody looks at the branch."""
        if self.drop_path.drop_prob == 0 or is_watched(*branch, self.dropout):
            return None
        return self.drop_path.kept_samples(hidden_states)

    def _add_to_kept(
        self,
        hidden_states: torch.Tensor,
        kept: torch.Tensor,
        factor: float,
        branch_of: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Add a branch to the samples of the indices `kept`, shape (kept,): for the others it is not computed."""
        branch = self._scaled(self.dropout(branch_of(hidden_states[kept]))) * factor
        hidden_states = hidden_states.to(torch.promote_types(hidden_states.dtype, branch.dtype))
        return hidden_states.index_add(0, kept, branch.to(hidden_states.dtype))

    def _scaled(self, branch: torch.Tensor) -> torch.Tensor:
        return branch if self.residual_scale == 1 else branch * self.residual_scale

    def _adds_mlp_as_it_is(self) -> bool:
        """Whether nothing is done to the MLP's branch, and nobody looks at it, before it is added."""
        if self.training or torch.compiler.is_compiling() or self.residual_scale != 1:
            return False
        if type(self.mlp) is not MLP or type(self.layer_scale2) is not nn.Identity:
            return False
        return not is_watched(self.mlp, self.layer_scale2, self.dropout, self.drop_path)


class HfViTLayer(_PreNormLayer):
    """Pre-norm Transformer layer; it may have relative positions of its own.

    (batch, tokens, hidden_size) -> the same shape, or fewer tokens
    """

    def __init__(self, config: Any, drop_path_rate: float):
        super().__init__(config, make_attention(config), drop_path_rate)
        has_bias = "relative_bias_per_layer" in config.position_embeddings
        self.relative_position_bias = RelativePositionBias(config) if has_bias else None
        is_mixed = "rope_mixed" in config.position_embeddings
        self.rotary_embedding = MixedRotaryPosition(config) if is_mixed else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor | None = None,
        rotary_embedding: tuple[torch.Tensor, torch.Tensor] | None = None,
        grid_size: tuple[int, int] | None = None,
        kept: torch.Tensor | None = None,
        output_attentions: bool = False,
        groups: TokenGroups | None = None,
        reduction: TokenReduction | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor | None, ...]:
        """(batch, tokens, hidden_size) -> the same shape; with `groups`, the tokens that are left, and the fields of
        their groups.

        Args:
            position_bias: (1 or batch, heads, tokens, tokens), added to the scores.
            rotary_embedding: cosines and sines, see `attention.rotate`.
            grid_size: (rows, columns) of patches, for positions of the layer's own.
            kept: indices of the tokens in the sequence of all, shape (batch, tokens), where some were dropped.
            output_attentions: make the attention compute its weights, for whoever records them.
            groups: what the tokens stand for, where that is more than themselves. Positions are then those of the
                whole sequence.
            reduction: makes them fewer, between attention and MLP.
        """
        if groups is not None:
            kept = None
        if self.relative_position_bias is not None:
            own_bias = of_kept_pairs(self.relative_position_bias(grid_size), kept)
            position_bias = own_bias if position_bias is None else position_bias + own_bias
        if self.rotary_embedding is not None:
            rotary_embedding = of_kept_tokens(self.rotary_embedding(grid_size), kept)
        if groups is not None:
            return self._reduced(hidden_states, position_bias, rotary_embedding, output_attentions, groups, reduction)
        options: dict[str, Any] = {"position_bias": position_bias, "rotary_embedding": rotary_embedding}
        # What differs by the sample, or is recorded of all of them, is left as it is.
        few = None
        if self.training and kept is None and not output_attentions:
            few = self._kept_samples(hidden_states, self.attention_norm, self.attention, self.layer_scale1)
        if few is not None:
            hidden_states = self._add_to_kept(
                hidden_states,
                *few,
                lambda states: self.layer_scale1(self.attention(self.attention_norm(states), **options)[0]),
            )
        else:
            normed = self.attention_norm(hidden_states)
            attended, _ = self.attention(normed, output_attentions=output_attentions, **options)
            hidden_states = self._add_attention(hidden_states, attended)
        return self._add_mlp(hidden_states)

    def _reduced(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor | None,
        rotary_embedding: tuple[torch.Tensor, torch.Tensor] | None,
        output_attentions: bool,
        groups: TokenGroups,
        reduction: TokenReduction | None,
    ) -> tuple[torch.Tensor | None, ...]:
        attended, _, *measured = self.attention(
            self.attention_norm(hidden_states),
            position_bias=None if position_bias is None else groups.of_pairs(position_bias),
            rotary_embedding=None if rotary_embedding is None else of_kept_tokens(rotary_embedding, groups.position),
            output_attentions=output_attentions,
            key_bias=None if groups.sizes is None else groups.sizes.log(),
            measure=None if reduction is None else reduction.measure,
        )
        hidden_states = self._add_attention(hidden_states, attended)
        if reduction is not None:
            hidden_states, groups = reduction(hidden_states, groups, *measured)
        return self._add_mlp(hidden_states), *groups


class HfViTClassLayer(_PreNormLayer):
    """Class-attention layer (CaiT, 2103.17239): the class tokens, and they alone, attend to themselves and to the
    other tokens, and change. As in the paper it drops no path."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, ClassAttention(config), drop_path_rate=0.0)

    def forward(
        self,
        class_tokens: torch.Tensor,
        hidden_states: torch.Tensor,
        output_attentions: bool = False,
        sizes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(batch, class tokens, hidden_size), (batch, other tokens, hidden_size) -> the shape of the former.

        Args:
            sizes: how many tokens each of the latter stands for, shape (batch, other tokens).
        """
        tokens = self.attention_norm(torch.cat((class_tokens, hidden_states), dim=1))
        key_bias = None if sizes is None else nn.functional.pad(sizes.log(), (class_tokens.shape[1], 0))
        attended, _ = self.attention(
            tokens[:, : class_tokens.shape[1]], tokens, output_attentions=output_attentions, key_bias=key_bias
        )
        return self._add_mlp(self._add_attention(class_tokens, attended))


__all__ = ["HfViTClassLayer", "HfViTLayer"]
