"""Compares variants of a recipe over several seeds: `python training/study.py NAME|PATH`."""

from pathlib import Path

from hf_vit.study import main

if __name__ == "__main__":
    clone = Path(__file__).resolve().parents[1]
    main(studies=clone / "training" / "studies", results_dir=clone / "benchmarks" / "results")
