"""Training of the two small models that the package ships, on made scenes (`scripts/train_small.py`)."""
