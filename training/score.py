"""Scores a saved or published model: `python training/score.py --model_name_or_path M --dataset_name D`."""

from hf_vit.score import main

if __name__ == "__main__":
    main()
