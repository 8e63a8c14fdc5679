"""Train U-Nets on a few annotated EM sections and batch-segment terabyte volumes, tile by tile, on Ray."""

__version__ = "0.1.0"
