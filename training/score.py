"""Scores a saved or published model: `python training/score.py --model_name_or_path M --dataset_name D`."""

from hf_vit.errors import told
from hf_vit.extras import extra

if __name__ == "__main__":
    with told(), extra("train"):
        from hf_vit.score import main

        main()
