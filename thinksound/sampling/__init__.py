"""Rectified-flow sampling: time grid, guidance, solver, loop."""
