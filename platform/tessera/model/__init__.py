"""Floor 2: the U-Net, its losses, its bundle and its predictor."""
