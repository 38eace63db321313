"""Greedy and beam search over [`CachedDecoder`]: the texts of transformers' `generate`, sooner."""

import copy
from typing import Any

import torch
from torch import distributed, nn
from transformers.generation import (
    EosTokenCriteria,
    GenerationConfig,
    MaxLengthCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from .cached_decoder import CachedDecoder, can_be_cached
from .checked_generation import CheckedGenerationMixin
from .cpu_generation import LoopNotRun, generate_with_loop, say_slow
from .cpu_operators import is_plain_eager

# What transformers subtracts from a score that must not be chosen.
_EXCLUDED = -1e9
# Columns of scores that are looked through together, where there are enough scores for it to pay.
_BLOCK, _FEW_SCORES = 128, 100_000
# What [`BeamSearch`] knows of each source.
_STATE = ("sources", "texts", "scores", "finished", "finished_lengths", "finished_scores", "is_filled", "can_improve")
# Arguments of the model that a search here takes care of, before and after `generate` has prepared them.
_TENSORS = ("input_ids", "pixel_values", "attention_mask", "decoder_input_ids")
_KNOWN_ARGUMENTS = {*_TENSORS, "encoder_outputs"}
_PREPARED_ARGUMENTS = {"attention_mask", "encoder_outputs", "past_key_values", "cache", "use_cache"}
# Arguments of `generate` that leave the search as it is, and those that another search than these is for.
_OWN_ARGUMENTS = {"logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer", "tokenizer"}
_OTHERS = ("return_dict_in_generate", "output_attentions", "output_hidden_states", "low_memory", "prefill_chunk_size")


class FastGenerationMixin(CheckedGenerationMixin):
    """`generate` of transformers, whose greedy and beam search on a CPU, when they are asked for the texts alone, are
    those of this file. All that `generate` does before (limits, logits processors, stopping criteria, the encoder)
    stays as it is; whatever this file does not know goes to transformers."""

    def generate(self, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """See `GenerationMixin.generate`.

        Raises:
            ValueError: if an argument is not known, or a step would be taken without the steps before it.
        """
        options = None if args else self._options(inputs, generation_config, kwargs)
        if options is None:
            return super().generate(inputs, generation_config, *args, **kwargs)
        arguments, streamer = {"inputs": inputs, "generation_config": generation_config, **kwargs}, None
        if (options.num_beams or 1) == 1:  # the hook hands on neither streamer nor tokenizer
            streamer, tokenizer = (arguments.pop(name, None) for name in ("streamer", "tokenizer"))
            if options.stop_strings is not None:
                criterion = StopStringCriteria(stop_strings=options.stop_strings, tokenizer=tokenizer)
                criteria = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or ()), criterion])
                arguments.update(stop_strings=None, stopping_criteria=criteria)

        def search(input_ids: torch.Tensor, **prepared: Any) -> Any:
            return self._search(input_ids, streamer, **prepared)

        generate = super().generate
        return generate_with_loop(search, lambda: generate(inputs, generation_config, **kwargs), generate, arguments)

    def _options(self, inputs: Any, generation_config: Any, kwargs: dict) -> Any:
        """The options that hold, if a search of this file is what is asked for; else None."""
        if not isinstance(generation_config, (GenerationConfig, type(None))):
            return None
        try:
            options = copy.deepcopy(self.generation_config)
            if generation_config is not None:
                given = generation_config.to_dict().items()
                options.update(**{name: value for name, value in given if value is not None})
            rest = options.update(**kwargs)
            mode = options.get_generation_mode(rest.get("assistant_model")).value
        except (TypeError, ValueError):  # said by transformers itself, which is asked next
            return None
        except AttributeError as error:
            say_slow(f"for {error}")
            return None
        names = {name for name, value in rest.items() if value is not None and value is not False}
        has_criteria = bool(rest.get("stopping_criteria")) or options.max_time or options.stop_strings
        is_plain = (
            mode in ("greedy_search", "beam_search")
            and names <= _KNOWN_ARGUMENTS | _OWN_ARGUMENTS
            and not any(getattr(options, name, None) for name in _OTHERS)
            and options.cache_implementation in (None, "dynamic")
            and options.use_cache is not False
            and not (mode == "beam_search" and has_criteria)
            and self._takes(inputs, rest)
            and can_be_cached(self)
            and not _is_sharded(self)
        )
        return options if is_plain else None

    @staticmethod
    def _takes(inputs: Any, arguments: dict) -> bool:
        mask, outputs = arguments.get("attention_mask"), arguments.get("encoder_outputs")
        tensors = [inputs, *(arguments.get(name) for name in _TENSORS)]
        if outputs is not None:
            tensors.append(getattr(outputs, "last_hidden_state", ()))
        tensors = [tensor for tensor in tensors if tensor is not None]
        return (
            all(isinstance(tensor, torch.Tensor) for tensor in tensors)
            and is_plain_eager(*tensors)
            and (mask is None or (mask.ndim == 2 and bool((mask != 0).any(1).all())))
        )

    def _search(
        self,
        input_ids: torch.Tensor,
        streamer: Any,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        states = getattr(model_kwargs.get("encoder_outputs"), "last_hidden_state", None)
        unknown = {name for name, value in model_kwargs.items() if value is not None} - _PREPARED_ARGUMENTS
        num_beams = generation_config.num_beams
        has_own = num_beams > 1 and {type(each) for each in stopping_criteria} - {EosTokenCriteria, MaxLengthCriteria}
        if unknown or has_own or not isinstance(states, torch.Tensor) or not is_plain_eager(states):
            found = sorted(unknown) or has_own or type(states).__name__
            raise LoopNotRun(f"for generate has prepared what it does not know, {found}")
        model: Any = self
        model.get_decoder().embed(input_ids, None)  # refuses tokens that it does not know, as its steps do not
        # `generate` has repeated the sources for the beams.
        states, mask = states[::num_beams], model_kwargs.get("attention_mask")
        decoder = CachedDecoder(self, states, None if mask is None else mask[::num_beams], num_beams)
        if num_beams > 1:
            return BeamSearch(decoder, input_ids, logits_processor, generation_config).run()
        if streamer is not None:
            streamer.put(input_ids)
        looks_for_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        pad = _pad_of(generation_config) if looks_for_eos else None
        padding = None if pad is None else torch.tensor(pad)
        return greedy_search(decoder, input_ids, logits_processor, stopping_criteria, padding, streamer)


def _is_sharded(model: Any) -> bool:
    """Whether this process holds but parts of the model's weights, which all processes then gather together."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return False
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    return any(
        hasattr(layer.weight, "device_mesh") or layer.weight.shape != (layer.out_features, layer.in_features)
        for layer in layers
    )


def _eos_of(generation_config: Any) -> list[int]:
    eos = generation_config.eos_token_id
    return [] if eos is None else torch.as_tensor(eos).flatten().tolist()


def _pad_of(generation_config: Any) -> int | None:
    eos, pad = _eos_of(generation_config), generation_config.pad_token_id
    return eos[0] if pad is None and eos else pad


def greedy_search(
    decoder: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    pad: Any = None,
    streamer: Any = None,
) -> torch.Tensor:
    """Take the likeliest token again and again: texts of shape (batch, tokens), beginning with `input_ids`.

    Args:
        decoder ([`CachedDecoder`]): of one beam.
        input_ids: beginnings of the texts, shape (batch, tokens).
        logits_processor, stopping_criteria: as `generate` has prepared them.
        pad: id, of shape (), that follows the eos of a text, where eos is looked for.
        streamer: is given the tokens as they come.
    """
    is_open = input_ids.new_ones(len(input_ids), dtype=torch.bool)
    decoded = torch.arange(len(input_ids))  # the texts that the decoder still knows
    logits = decoder(input_ids)
    while True:
        best_ids = _topk(logits_processor(input_ids, logits.float()), 1)[1][:, 0]
        if pad is None:
            next_ids = best_ids
        else:
            next_ids = pad.expand(len(input_ids)).clone()
            next_ids[decoded] = torch.where(is_open[decoded], best_ids, pad)
        input_ids = torch.cat((input_ids, next_ids[:, None]), dim=1)
        if streamer is not None:
            streamer.put(next_ids)
        is_open &= ~stopping_criteria(input_ids, None)
        if not is_open.any():
            break
        # Processors may know each text by its index; and dropping copies what is kept.
        if pad is not None and not logits_processor and 2 * int(is_open.sum()) <= len(decoded):
            decoder.drop(is_open[decoded])
            decoded = is_open.nonzero()[:, 0]
        logits = decoder(next_ids[decoded, None])
    if streamer is not None:
        streamer.end()
    return input_ids


class BeamSearch:
    """Beam search by the rules of transformers: of the continuations of a source's texts, as many as there are beams
    (the best that do not end) go on; one that ends is a finished hypothesis if it is among that many best. A source
    keeps as many of these as beams, by their score over (length ** `length_penalty`).

    Args:
        decoder ([`CachedDecoder`]): of `generation_config.num_beams` beams.
        input_ids: beginnings of the texts, shape (batch * beams, tokens).
        logits_processor, generation_config: as `generate` has prepared them.
    """

    def __init__(self, decoder: Any, input_ids: torch.Tensor, logits_processor: Any, generation_config: Any) -> None:
        self.decoder, self.logits_processor, self.config = decoder, logits_processor, generation_config
        self.num_beams, self.max_length = generation_config.num_beams, generation_config.max_length
        self.length = self.prompt_length = input_ids.shape[1]
        eos = _eos_of(generation_config)
        self.eos = torch.tensor(eos) if eos else None
        # A padding token of 0 counts as none, as it does in transformers.
        pad = (_pad_of(generation_config) or eos[0]) if eos else -1
        shape = (len(input_ids) // self.num_beams, self.num_beams)
        self.texts = torch.full((*shape, self.max_length), pad)
        self.texts[:, :, : self.length] = input_ids.view(*shape, -1)
        # All beams begin alike: only the first counts.
        self.scores = torch.tensor([0.0] + [_EXCLUDED] * (self.num_beams - 1), dtype=torch.float).repeat(shape[0], 1)
        self.finished, self.finished_lengths = self.texts.clone(), torch.zeros(shape, dtype=torch.long)
        self.finished_scores = torch.full(shape, _EXCLUDED, dtype=torch.float)
        self.is_filled = torch.zeros(shape, dtype=torch.bool)
        self.can_improve = torch.ones(shape[0], 1, dtype=torch.bool)
        self.sources = torch.arange(shape[0])  # those that the tensors above are about
        self.closed: list[Any] = []

    def run(self) -> torch.Tensor:
        """The best `num_return_sequences` texts of each source, shape (batch * texts, tokens)."""
        token_ids = self.texts[:, :, : self.length].flatten(0, 1)
        while True:
            scores, beams, next_ids = self._best_continuations(self.decoder(token_ids))
            self.length += 1
            is_last = self.length >= self.max_length
            is_finished = torch.isin(next_ids, self.eos) if self.eos is not None else torch.zeros_like(next_ids).bool()
            is_finished |= is_last
            if is_finished[:, : self.num_beams].any():
                self._add_finished(scores, beams, next_ids, is_finished)
            token_ids = self._go_on(scores + is_finished * _EXCLUDED, beams, next_ids)
            is_open = self._is_open()
            if is_last or not is_open.any():
                break
            # Processors may know each text by its index; and closing copies what is kept.
            if not self.logits_processor and 2 * int(is_open.sum()) <= len(is_open):
                token_ids = token_ids.view(len(is_open), -1)[is_open].view(-1, 1)
                self.decoder.drop(is_open)
                self._close(~is_open)
        self._close(torch.ones_like(is_open))
        sources, finished, lengths = (torch.cat(parts) for parts in zip(*self.closed))
        finished = finished[sources.argsort(), :, : self.prompt_length + int(lengths.max())]
        return finished.flatten(0, 1)

    def _close(self, is_closed: torch.Tensor) -> None:
        """Put the finished hypotheses of sources aside and forget the sources, shape (sources,)."""
        texts = self.config.num_return_sequences
        parts = (self.sources, self.finished[:, :texts], self.finished_lengths[:, :texts])
        self.closed.append([part[is_closed] for part in parts])
        for name in _STATE:
            setattr(self, name, getattr(self, name)[~is_closed])

    def _best_continuations(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(batch * beams, vocabulary) -> scores, beams and tokens of the best continuations of each source's texts, in
        order, each (batch, continuations); enough of them for every beam to go on if all the best ones end."""
        num_eos = 0 if self.eos is None else len(self.eos)
        count = max(2, 1 + num_eos) * self.num_beams
        scores = logits.float().log_softmax(-1)
        if self.logits_processor:  # may make scores equal: the choice between them is that from all at once
            scores = self.logits_processor(self.texts[:, :, : self.length].flatten(0, 1), scores)
            token_ids = torch.arange(scores.shape[1]).repeat(len(scores), 1)
        else:  # the best of all are among the best of each beam
            scores, token_ids = _topk(scores, min(count, scores.shape[1]))
        scores = (scores.unflatten(0, (-1, self.num_beams)) + self.scores[:, :, None]).flatten(1)
        per_beam = token_ids.shape[1]
        scores, indices = scores.topk(count)
        return scores, indices // per_beam, token_ids.view(len(scores), -1).gather(1, indices)

    def _go_on(self, scores: torch.Tensor, beams: torch.Tensor, next_ids: torch.Tensor) -> torch.Tensor:
        """Keep the best of the continuations; their last tokens, shape (batch * beams, 1)."""
        self.scores, chosen = scores.topk(self.num_beams)
        beams, next_ids = beams.gather(1, chosen), next_ids.gather(1, chosen)
        self.texts = _rows(self.texts, beams)
        self.texts[:, :, self.length - 1] = next_ids
        self.decoder.keep(beams)
        return next_ids.view(-1, 1)

    def _add_finished(self, scores: torch.Tensor, beams: Any, next_ids: Any, is_finished: Any) -> None:
        is_full = self.is_filled.all(1, keepdim=True) & (self.config.early_stopping is True)
        num_tokens = self.length - self.prompt_length
        scores = scores / num_tokens**self.config.length_penalty
        is_new = is_finished & (torch.arange(scores.shape[1]) < self.num_beams)
        for excluded in (is_full, ~self.can_improve, ~is_new):
            scores = scores + excluded * _EXCLUDED
        texts = _rows(self.texts, beams)
        texts[:, :, self.length - 1] = next_ids
        self.finished_scores, chosen = torch.cat((self.finished_scores, scores), 1).topk(self.num_beams)
        self.finished = _rows(torch.cat((self.finished, texts), 1), chosen)
        lengths = torch.full_like(next_ids, num_tokens)
        self.finished_lengths = torch.cat((self.finished_lengths, lengths), 1).gather(1, chosen)
        self.is_filled = torch.cat((self.is_filled, is_new), 1).gather(1, chosen)

    def _is_open(self) -> torch.Tensor:
        """Which sources may still get a better hypothesis, by the heuristic of `early_stopping`, shape (sources,)."""
        longest = self.config.early_stopping == "never" and self.config.length_penalty > 0
        num_tokens = (self.max_length if longest else self.length) - self.prompt_length
        best = self.scores[:, :1] / num_tokens**self.config.length_penalty
        worst_finished = self.finished_scores.amin(1, keepdim=True).where(self.is_filled, _EXCLUDED)
        self.can_improve &= (best > worst_finished).any(1, keepdim=True)
        is_full = self.is_filled.all(1, keepdim=True) & (self.config.early_stopping is True)
        return (self.can_improve & ~is_full)[:, 0]


def _topk(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`scores.topk(count)`, of equal scores the first where `count` is 1. Only the blocks of columns with the largest
    maxima are looked through, for maxima alone are found several times as fast.

    (rows, columns) -> twice (rows, count)
    """
    num_blocks = scores.shape[1] // _BLOCK
    if num_blocks <= count or scores.numel() < _FEW_SCORES:
        return scores.max(1, keepdim=True) if count == 1 else scores.topk(count)
    rest = torch.arange(num_blocks * _BLOCK, scores.shape[1]).expand(len(scores), -1)
    maxima = scores[:, : num_blocks * _BLOCK].unflatten(1, (num_blocks, _BLOCK)).amax(2)
    blocks = maxima.argmax(1, keepdim=True) if count == 1 else maxima.topk(count).indices
    columns = (blocks[:, :, None] * _BLOCK + torch.arange(_BLOCK)).flatten(1)
    columns = torch.cat((columns, rest), 1)  # (rows, count * _BLOCK + columns of no block)
    candidates = scores.gather(1, columns)
    best, indices = candidates.max(1, keepdim=True) if count == 1 else candidates.topk(count)
    return best, columns.gather(1, indices)


def _rows(texts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(batch, texts, tokens) and the indices of rows (batch, rows) -> (batch, rows, tokens)"""
    return texts.gather(1, indices[:, :, None].expand(-1, -1, texts.shape[2]))


__all__ = ["FastGenerationMixin"]
