"""Parts that are added to a method: a small file each, all with the seams of `part.Part`."""
