"""`vitrail bench`: speed of this machine on models of real geometries with random weights; measurements only, no output."""
