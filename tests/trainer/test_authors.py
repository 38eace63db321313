"""The author's words: beside the recipe, in the run's folder, or typed."""

from dataclasses import fields

import pytest

from hf_vit.cards.records import AUTHOR_FIELDS
from hf_vit.trainer.authors import AuthorArguments, author_file, copy_author_file


def test_every_field_of_the_card_can_be_typed():
    assert {f"card_{name}" for name in AUTHOR_FIELDS} == {field.name for field in fields(AuthorArguments)}


def test_the_file_beside_the_recipe_yields_to_the_one_in_the_folder(tmp_path):
    recipe, output_dir, folder = tmp_path / "mine.yaml", tmp_path / "run", tmp_path / "staging"
    output_dir.mkdir(), folder.mkdir()
    copy_author_file(recipe, output_dir, folder)
    assert not list(folder.iterdir())
    for path, text in (tmp_path / "mine.card.yaml", "beside"), (output_dir / "card.yaml", "inside"):
        path.write_text(f"authors: {text}\n")
        copy_author_file(recipe, output_dir, folder)
        assert (folder / "card.yaml").read_text() == f"authors: {text}\n"
    path.write_text("author: Alice\n")
    with pytest.raises(ValueError, match=r"card.yaml: unknown field 'author'; did you mean 'authors'"):
        author_file(recipe, output_dir)
