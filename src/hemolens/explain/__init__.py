"""Where a network looked: Grad-CAM and occlusion maps on the grid of the scan, and a score of how well they fit."""
