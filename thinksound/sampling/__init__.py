"""Rectified-flow sampling: noise, guidance, time grid, solvers."""
