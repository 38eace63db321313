"""Model cards written from a run's records: facts -> Jinja template -> README.md, with figures."""

from typing import TYPE_CHECKING, Any

from hf_vit.extras import extra

if TYPE_CHECKING:
    from hf_vit.cards.card import check_card, write_card

__all__ = ["check_card", "write_card"]


def __getattr__(name: str) -> Any:
    # Figures and templates load when a card is made: its records are read by much that makes none.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extra("hub"):
        from hf_vit.cards import card
    return getattr(card, name)
