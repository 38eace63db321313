"""The one training loop, on Accelerate, and what it is made of."""

from hf_vit.extras import extra

with extra("train"):
    import accelerate  # noqa: F401
