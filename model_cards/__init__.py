"""Model cards written from a run's records: facts -> Jinja template -> README.md, with figures."""

from .card import check_card, write_card
from .facts import CardFacts

__all__ = ["CardFacts", "check_card", "write_card"]
