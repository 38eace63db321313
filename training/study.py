"""Compares variants of a recipe over several seeds: `python training/study.py NAME|PATH`."""

from hf_vit.study import main

if __name__ == "__main__":
    main()
