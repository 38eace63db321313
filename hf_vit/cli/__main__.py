"""`python -m hf_vit.cli` is `hf-vit`."""

from hf_vit.cli import main

main()
