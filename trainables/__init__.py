"""Models, losses, metrics and the training loop in pure PyTorch; only `worker.py` knows Ray."""
