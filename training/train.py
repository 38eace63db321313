"""Trains a model: `accelerate launch training/train.py [--recipe NAME] [--flag value ...]`, see `--help`."""

from hf_vit.errors import told

if __name__ == "__main__":
    with told():
        from hf_vit.train import main

        main()
