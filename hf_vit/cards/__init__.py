"""Model cards written from a run's records: facts -> Jinja template -> README.md, with figures."""

from hf_vit.cards.card import check_card, write_card

__all__ = ["check_card", "write_card"]
