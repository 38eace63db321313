"""Shared by the tests of the models: decisions as on a measured processor, whichever runs them."""

import pytest

from hf_vit.models import cpu_paths


@pytest.fixture(autouse=True)
def as_on_amd(monkeypatch):
    monkeypatch.setattr(cpu_paths, "PROCESSOR", "amd")
