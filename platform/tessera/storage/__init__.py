"""Floor 2: volumes, slice stacks, OME-Zarr metadata and the block ledger."""
