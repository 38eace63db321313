"""Faster ways of inference that a model takes when it is asked to."""

from torch import nn

from .cpu_linear import pack_weights, unpack_weights


class InferenceModesMixin(nn.Module):
    """A model whose weights can be packed for inference on a CPU."""

    def pack_weights(self) -> "InferenceModesMixin":
        """Lay out the weights of linear layers on a CPU as oneDNN likes them best, in place, for faster inference with
        the same outputs but for rounding; a translation pipeline does it. As with `half()` or `to()`, the weights get
        new memory, which arrays that shared the old do not see. A packed weight is no copy: whatever reads or changes
        one other than inference (`state_dict`, `half`, an optimizer, training), through the model or the parameter,
        makes it an ordinary one again, with the same values; a tied output layer's is held beside its embeddings until
        then. So packing takes no more memory than the weights do, and training none at all. Returns the model itself.

        Raises:
            ValueError: if the model is not in eval mode.
        """
        if self.training:
            raise ValueError("the model must be in eval mode to pack its weights, got training mode: call eval()")
        pack_weights(self)
        return self

    def unpack_weights(self) -> "InferenceModesMixin":
        """Make all packed weights ordinary ones; see `pack_weights`. Returns the model itself."""
        unpack_weights(self)
        return self

    def train(self, mode: bool = True) -> "InferenceModesMixin":
        """See `torch.nn.Module.train`. Unpacks the weights, which are about to change."""
        if mode:
            unpack_weights(self)
        return super().train(mode)


__all__ = ["InferenceModesMixin"]
