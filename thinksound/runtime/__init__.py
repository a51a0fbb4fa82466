"""Decides on which device and in which dtype each network runs."""
