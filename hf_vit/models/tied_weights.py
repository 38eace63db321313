"""Weights that are tied by a switch of the configuration, and saved whole where they are not."""

from collections import defaultdict
from typing import Any, ClassVar

import torch
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import id_tensor_storage

from .int8_linear import refuse_quantized


class TiedWeightsModel(PreTrainedModel):
    """Base of models that tie weights where a field of their configuration says so."""

    # What is tied to what where this field of the configuration is true.
    _ties: ClassVar[dict[str, str]] = {}
    _tying_switch = "tie_word_embeddings"
    config: Any

    @property
    def _tied_weights_keys(self) -> dict[str, str]:  # type: ignore[override]  # transformers only reads it
        return dict(self._ties) if getattr(self.config, self._tying_switch) else {}

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """See `PreTrainedModel.get_expanded_tied_weights_keys`, which knows one switch where here are two."""
        return super().get_expanded_tied_weights_keys(all_submodels=True) if all_submodels else self._tied_weights_keys

    def save_pretrained(  # type: ignore[override]  # what is not named here is handed on
        self, save_directory: Any, is_main_process: bool = True, state_dict: dict | None = None, **kwargs: Any
    ) -> Any:
        """See `PreTrainedModel.save_pretrained`. Weights that share their memory though the configuration does not tie
        them (which changed since, by hand or by an adapter) are each saved: a model that is loaded lacks none.

        Raises:
            ValueError: if the model was quantized; nothing is written then.
        """
        refuse_quantized(self, "saved")
        if not self._hf_peft_config_loaded:
            weights = self.state_dict() if state_dict is None else state_dict
            copies = self._copies_of_untied(weights)
            state_dict = {**weights, **copies} if copies else state_dict
        return super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    def _copies_of_untied(self, state_dict: dict) -> dict[str, torch.Tensor]:
        tied = self.get_expanded_tied_weights_keys(all_submodels=True)
        names_at = defaultdict(list)
        for name, tensor in state_dict.items():
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                names_at[id_tensor_storage(tensor)].append(name)
        copies = {}
        for names in names_at.values():
            sources = {name: tied[name] if tied.get(name) in names else name for name in names}
            for source in list(dict.fromkeys(sources.values()))[1:]:
                copy = state_dict[source].clone()
                copies.update({name: copy for name in names if sources[name] == source})
        return copies


__all__ = ["TiedWeightsModel"]
