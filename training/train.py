"""Trains a model: `accelerate launch training/train.py [--recipe NAME] [--flag value ...]`, see `--help`."""

from hf_vit.train import main

if __name__ == "__main__":
    main()
