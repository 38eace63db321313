"""The pages of verbs do what they say, with trainings cut to two steps."""

import pytest
from documentation.test_snippets import VERBS, commands, examples, hub, name_of, run_page

__all__ = ["commands", "examples", "hub"]  # fixtures


@pytest.mark.parametrize("page", VERBS, ids=name_of)
def test_a_page_of_a_verb_does_what_it_says(page, examples, commands, tmp_path):
    run_page(page, examples, tmp_path, commands, cut="1")
