"""Greedy and beam search over [`CachedDecoder`]: the texts of transformers' `generate`, sooner."""

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import EosTokenCriteria, GenerationMixin, MaxLengthCriteria

from .cached_decoder import CachedDecoder, can_be_cached
from .cpu_operators import is_plain_eager

# What transformers subtracts from a score that must not be chosen.
_EXCLUDED = -1e9
# Columns of scores that are looked through together, where there are enough scores for it to pay.
_BLOCK, _FEW_SCORES = 128, 100_000
# What [`BeamSearch`] knows of each source.
_STATE = ("sources", "texts", "scores", "results", "result_lengths", "result_scores", "is_result", "can_improve")
_KNOWN_ARGUMENTS = {"attention_mask", "encoder_outputs", "past_key_values", "use_cache"}


class FastGenerationMixin(GenerationMixin):
    """`generate` of transformers, whose greedy and beam search on a CPU, when they are asked for the texts alone, are
    those of this file. All that `generate` does before (limits, logits processors, stopping criteria, the encoder)
    stays as it is; whatever this file does not know goes to transformers."""

    def _sample(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        streamer, synced_gpus = kwargs.pop("streamer", None), kwargs.pop("synced_gpus", False)
        if synced_gpus or not self._is_plain(generation_config, kwargs):
            kwargs.update(streamer=streamer, synced_gpus=synced_gpus)
            return super()._sample(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        decoder = self._cached_decoder(input_ids, kwargs)
        filler = generation_config._pad_token_tensor if generation_config._eos_token_tensor is not None else None
        return greedy_search(decoder, input_ids, logits_processor, stopping_criteria, filler, streamer)

    def _beam_search(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        synced_gpus = kwargs.pop("synced_gpus", False)
        knows_criteria = all(type(each) in (EosTokenCriteria, MaxLengthCriteria) for each in stopping_criteria)
        if synced_gpus or not knows_criteria or not self._is_plain(generation_config, kwargs):
            kwargs.update(synced_gpus=synced_gpus)
            return super()._beam_search(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        decoder = self._cached_decoder(input_ids, kwargs, generation_config.num_beams)
        return BeamSearch(decoder, input_ids, logits_processor, generation_config).run()

    def _is_plain(self, generation_config, model_kwargs: dict) -> bool:
        cache, mask = model_kwargs.get("past_key_values"), model_kwargs.get("attention_mask")
        states = getattr(model_kwargs.get("encoder_outputs"), "last_hidden_state", None)
        return (
            not (generation_config.do_sample or generation_config.return_dict_in_generate)
            and not (generation_config.low_memory or generation_config.prefill_chunk_size)
            and type(cache) is EncoderDecoderCache
            and type(cache.self_attention_cache) is DynamicCache
            and not getattr(cache, "_is_user_defined", False)
            and {name for name, value in model_kwargs.items() if value is not None} <= _KNOWN_ARGUMENTS
            and isinstance(states, torch.Tensor)
            and is_plain_eager(states)
            and (mask is None or (mask.ndim == 2 and bool((mask != 0).any(1).all())))
            and can_be_cached(self)
        )

    def _cached_decoder(self, input_ids, model_kwargs: dict, num_beams: int = 1) -> CachedDecoder:
        self.get_decoder().embed(input_ids, None)  # refuses tokens that it does not know, as its steps do not
        # `generate` has repeated the sources for the beams.
        states = model_kwargs["encoder_outputs"].last_hidden_state[::num_beams]
        mask = model_kwargs.get("attention_mask")
        return CachedDecoder(self, states, None if mask is None else mask[::num_beams], num_beams)


def greedy_search(decoder, input_ids, logits_processor, stopping_criteria, filler=None, streamer=None) -> torch.Tensor:
    """Take the likeliest token again and again: texts of shape (batch, tokens), beginning with `input_ids`.

    Args:
        decoder ([`CachedDecoder`]): of one beam.
        input_ids: beginnings of the texts, shape (batch, tokens).
        logits_processor, stopping_criteria: as `generate` has prepared them.
        filler: what follows the end of a text, where ends are looked for.
        streamer: is given the tokens as they come.
    """
    is_open = input_ids.new_ones(len(input_ids), dtype=torch.bool)
    decoded = torch.arange(len(input_ids))  # the texts that the decoder still knows
    logits = decoder(input_ids)
    while True:
        best_ids = _topk(logits_processor(input_ids, logits.float()), 1)[1][:, 0]
        if filler is None:
            next_ids = best_ids
        else:
            next_ids = filler.expand(len(input_ids)).clone()
            next_ids[decoded] = torch.where(is_open[decoded], best_ids, filler)
        input_ids = torch.cat((input_ids, next_ids[:, None]), dim=1)
        if streamer is not None:
            streamer.put(next_ids)
        is_open &= ~stopping_criteria(input_ids, None)
        if not is_open.any():
            break
        # Processors may know each text by its place; and dropping copies what is kept.
        if filler is not None and not logits_processor and 2 * int(is_open.sum()) <= len(decoded):
            decoder.drop(is_open[decoded])
            decoded = is_open.nonzero()[:, 0]
        logits = decoder(next_ids[decoded, None])
    if streamer is not None:
        streamer.end()
    return input_ids


class BeamSearch:
    """Beam search by the rules of transformers: of the continuations of a source's texts, as many as there are beams
    (the best that do not end) go on; one that ends is a result if it is among that many best. A source keeps as many
    results as beams, by their score over (length ** `length_penalty`).

    Args:
        decoder ([`CachedDecoder`]): of `generation_config.num_beams` beams.
        input_ids: beginnings of the texts, shape (batch * beams, tokens).
        logits_processor, generation_config: as `generate` has prepared them.
    """

    def __init__(self, decoder, input_ids, logits_processor, generation_config):
        self.decoder, self.logits_processor, self.config = decoder, logits_processor, generation_config
        self.num_beams, self.max_length = generation_config.num_beams, generation_config.max_length
        self.length = self.prompt_length = input_ids.shape[1]
        self.ends, padding = generation_config._eos_token_tensor, generation_config._pad_token_tensor
        # A padding token of 0 counts as none, as it does in transformers.
        filler = -1 if self.ends is None else (padding or self.ends[0])
        shape = (len(input_ids) // self.num_beams, self.num_beams)
        self.texts = torch.full((*shape, self.max_length), int(filler))
        self.texts[:, :, : self.length] = input_ids.view(*shape, -1)
        # All beams begin alike: only the first counts.
        self.scores = torch.tensor([0.0] + [_EXCLUDED] * (self.num_beams - 1), dtype=torch.float).repeat(shape[0], 1)
        self.results, self.result_lengths = self.texts.clone(), torch.zeros(shape, dtype=torch.long)
        self.result_scores = torch.full(shape, _EXCLUDED, dtype=torch.float)
        self.is_result = torch.zeros(shape, dtype=torch.bool)
        self.can_improve = torch.ones(shape[0], 1, dtype=torch.bool)
        self.sources = torch.arange(shape[0])  # those that the tensors above are about
        self.closed = []

    def run(self) -> torch.Tensor:
        """The best `num_return_sequences` texts of each source, shape (batch * texts, tokens)."""
        token_ids = self.texts[:, :, : self.length].flatten(0, 1)
        while True:
            scores, beams, next_ids = self._best_continuations(self.decoder(token_ids))
            self.length += 1
            is_last = self.length >= self.max_length
            has_ended = torch.isin(next_ids, self.ends) if self.ends is not None else torch.zeros_like(next_ids).bool()
            has_ended |= is_last
            if has_ended[:, : self.num_beams].any():
                self._add_results(scores, beams, next_ids, has_ended)
            token_ids = self._go_on(scores + has_ended * _EXCLUDED, beams, next_ids)
            is_open = self._is_open()
            if is_last or not is_open.any():
                break
            # Processors may know each text by its place; and closing copies what is kept.
            if not self.logits_processor and 2 * int(is_open.sum()) <= len(is_open):
                token_ids = token_ids.view(len(is_open), -1)[is_open].view(-1, 1)
                self.decoder.drop(is_open)
                self._close(~is_open)
        self._close(torch.ones_like(is_open))
        sources, results, lengths = (torch.cat(parts) for parts in zip(*self.closed))
        results = results[sources.argsort(), :, : self.prompt_length + int(lengths.max())]
        return results.flatten(0, 1)

    def _close(self, is_closed: torch.Tensor):
        """Put the results of sources aside and forget them, shape (sources,)."""
        texts = self.config.num_return_sequences
        parts = (self.sources, self.results[:, :texts], self.result_lengths[:, :texts])
        self.closed.append([part[is_closed] for part in parts])
        for name in _STATE:
            setattr(self, name, getattr(self, name)[~is_closed])

    def _best_continuations(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(batch * beams, vocabulary) -> scores, beams and tokens of the best continuations of each source's texts, in
        order, each (batch, continuations); enough of them for every beam to go on if all the best ones end."""
        num_ends = 0 if self.ends is None else len(self.ends)
        count = max(2, 1 + num_ends) * self.num_beams
        scores = logits.float().log_softmax(-1)
        if self.logits_processor:  # may make scores equal: the choice between them is that from all at once
            scores = self.logits_processor(self.texts[:, :, : self.length].flatten(0, 1), scores)
            token_ids = torch.arange(scores.shape[1]).repeat(len(scores), 1)
        else:  # the best of all are among the best of each beam
            scores, token_ids = _topk(scores, min(count, scores.shape[1]))
        scores = (scores.unflatten(0, (-1, self.num_beams)) + self.scores[:, :, None]).flatten(1)
        per_beam = token_ids.shape[1]
        scores, places = scores.topk(count)
        return scores, places // per_beam, token_ids.view(len(scores), -1).gather(1, places)

    def _go_on(self, scores: torch.Tensor, beams: torch.Tensor, next_ids: torch.Tensor) -> torch.Tensor:
        """Keep the best of the continuations; their last tokens, shape (batch * beams, 1)."""
        self.scores, chosen = scores.topk(self.num_beams)
        beams, next_ids = beams.gather(1, chosen), next_ids.gather(1, chosen)
        self.texts = _rows(self.texts, beams)
        self.texts[:, :, self.length - 1] = next_ids
        self.decoder.keep(beams)
        return next_ids.view(-1, 1)

    def _add_results(self, scores, beams, next_ids, has_ended):
        is_full = self.is_result.all(1, keepdim=True) & (self.config.early_stopping is True)
        num_tokens = self.length - self.prompt_length
        scores = scores / num_tokens**self.config.length_penalty
        is_new = has_ended & (torch.arange(scores.shape[1]) < self.num_beams)
        for excluded in (is_full, ~self.can_improve, ~is_new):
            scores = scores + excluded * _EXCLUDED
        texts = _rows(self.texts, beams)
        texts[:, :, self.length - 1] = next_ids
        self.result_scores, chosen = torch.cat((self.result_scores, scores), 1).topk(self.num_beams)
        self.results = _rows(torch.cat((self.results, texts), 1), chosen)
        lengths = torch.full_like(next_ids, num_tokens)
        self.result_lengths = torch.cat((self.result_lengths, lengths), 1).gather(1, chosen)
        self.is_result = torch.cat((self.is_result, is_new), 1).gather(1, chosen)

    def _is_open(self) -> torch.Tensor:
        """Which sources may still get a better result, by the heuristic of `early_stopping`, shape (sources,)."""
        longest = self.config.early_stopping == "never" and self.config.length_penalty > 0
        num_tokens = (self.max_length if longest else self.length) - self.prompt_length
        best = self.scores[:, :1] / num_tokens**self.config.length_penalty
        worst_result = self.result_scores.amin(1, keepdim=True).where(self.is_result, _EXCLUDED)
        self.can_improve &= (best > worst_result).any(1, keepdim=True)
        is_full = self.is_result.all(1, keepdim=True) & (self.config.early_stopping is True)
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
    best, places = candidates.max(1, keepdim=True) if count == 1 else candidates.topk(count)
    return best, columns.gather(1, places)


def _rows(texts: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(batch, texts, tokens) and the places of rows (batch, rows) -> (batch, rows, tokens)"""
    return texts.gather(1, places[:, :, None].expand(-1, -1, texts.shape[2]))


__all__ = ["FastGenerationMixin"]
