"""Evaluation against the known truth of synthetic clips."""
