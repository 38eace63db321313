"""Files that travel to the Hub beside the weights: they import torch, transformers and each other, nothing else."""
