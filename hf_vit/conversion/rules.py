"""How weights of another library become ours and back: rules that name both sides, applied in either direction."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

Tensors = list[torch.Tensor]
Peer = Any  # a model of another library: an `nn.Module` with the parts of its class


@dataclass(frozen=True)
class Rule:
    """Weights of ours and the weights of the peer that hold the same.

    Names are dotted templates: each `*` stands for one part between dots (the number of a layer, `weight` or `bias`),
    and the templates of a rule have as many.

    Args:
        ours: one or several names of our weights.
        theirs: one or several names of the peer's.
        from_theirs: maps the peer's tensors to ours, in these orders.
        to_theirs: maps ours to the peer's.
        joins: whether ours is the peer's tensors, one after the other along the first axis.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    from_theirs: Callable[[Tensors], Tensors] = list
    to_theirs: Callable[[Tensors], Tensors] = list
    joins: bool = False

    def without(self, ours: str, theirs: str) -> Rule:
        """The rule for models that are the bodies alone: without these beginnings of the names."""
        return replace(
            self,
            ours=tuple(name.removeprefix(ours) for name in self.ours),
            theirs=tuple(name.removeprefix(theirs) for name in self.theirs),
        )

    def reversed(self) -> Rule:
        """The rule for the other direction."""
        return Rule(self.theirs, self.ours, self.to_theirs, self.from_theirs)


def same(ours: str, theirs: str) -> Rule:
    """The same tensor under two names."""
    return Rule((ours,), (theirs,))


def reshaped(
    ours: str,
    theirs: str,
    from_theirs: Callable[[torch.Tensor], torch.Tensor],
    to_theirs: Callable[[torch.Tensor], torch.Tensor],
) -> Rule:
    """One tensor in two forms."""
    return Rule(
        (ours,),
        (theirs,),
        lambda tensors: [from_theirs(tensors[0])],
        lambda tensors: [to_theirs(tensors[0])],
    )


def fused(ours: str, *theirs: str) -> Rule:
    """One tensor of ours that holds several of the peer's, all of one size, along its first axis."""
    return Rule(
        (ours,),
        theirs,
        lambda tensors: [torch.cat(tensors)],
        # Copies: parts of one memory could not be saved, or freed, on their own.
        lambda tensors: [part.clone() for part in tensors[0].chunk(len(theirs))],
        joins=True,
    )


def constant(theirs: str, make: Callable[[], torch.Tensor]) -> Rule:
    """A weight of the peer's for what ours does without: `make` gives the value that changes nothing."""
    return Rule((), (theirs,), lambda tensors: [], lambda tensors: [make()])


def apply_rules(
    weights: dict[str, torch.Tensor], rules: Iterable[Rule], parts: dict[str, Tensors] | None = None
) -> dict[str, torch.Tensor]:
    """Our weights made of the peer's (or the other way round, by reversed rules).

    Args:
        weights: by the peer's names. Those that a rule has read are taken out, so that no more than one of each is in
            memory at a time; what is left over no rule reads.
        parts: takes the parts of weights that are others joined, by our names; in the place of these weights there are
            then zeros that take no memory.

    Returns:
        Weights by our names.
    """
    converted: dict[str, torch.Tensor] = {}
    for rule in rules:
        for names, groups in _matches(rule, weights):
            read = [weights.pop(name) for name in names]
            if parts is not None and rule.joins and len({tensor.shape[1:] for tensor in read}) == 1:
                parts[_filled(rule.ours[0], groups)] = read
                tensors = [_placeholder(read)]
            else:
                tensors = rule.from_theirs(read)
            for template, tensor in zip(rule.ours, tensors, strict=True):
                converted[_filled(template, groups)] = tensor
    return converted


def _placeholder(parts: Tensors) -> torch.Tensor:
    """Zeros of the shape of all parts joined, one number in memory."""
    return parts[0].new_zeros(()).expand(sum(len(part) for part in parts), *parts[0].shape[1:])


def counterparts(name: str, rules: Iterable[Rule]) -> list[str]:
    """The peer's names of the weights that one of ours is made of."""
    for rule in rules:
        for template in rule.ours:
            if match := _pattern(template).fullmatch(name):
                return [_filled(theirs, match.groups()) for theirs in rule.theirs]
    return []


def _matches(rule: Rule, weights: dict[str, torch.Tensor]) -> list[tuple[list[str], tuple[str, ...]]]:
    if not rule.theirs:
        return [([], ())]
    pattern = _pattern(rule.theirs[0])
    found = [match.groups() for match in map(pattern.fullmatch, weights) if match]
    names = [([_filled(template, parts) for template in rule.theirs], parts) for parts in found]
    return [(group, parts) for group, parts in names if all(name in weights for name in group)]


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\*", r"([^.]+)"))


def _filled(template: str, parts: tuple[str, ...]) -> str:
    values = iter(parts)
    return re.sub(r"\*", lambda _: next(values), template)


__all__ = ["Rule", "apply_rules", "constant", "counterparts", "fused", "reshaped", "same"]
