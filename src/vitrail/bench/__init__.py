"""`vitrail bench`: what this machine does with models of the real geometries and random weights. No options, no printing."""
