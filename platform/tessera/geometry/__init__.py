"""Floor 0: half-open boxes, U-Net arithmetic, block grids and tiles; integers only."""
