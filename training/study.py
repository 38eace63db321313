"""Compares variants of a recipe over several seeds: `python training/study.py NAME|PATH`."""

from pathlib import Path

from hf_vit.errors import told
from hf_vit.extras import extra

if __name__ == "__main__":
    clone = Path(__file__).resolve().parents[1]
    with told(), extra("train"):
        from hf_vit.study import main

        main(studies=clone / "training" / "studies", results_dir=clone / "benchmarks" / "results")
