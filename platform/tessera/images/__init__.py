"""Floor 1: pure functions on images: mirroring, warps, augmentation, weight maps, normalisation, the phantom."""
