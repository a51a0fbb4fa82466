"""Evaluation of generated sound: against the known truth of synthetic clips, and by the field's metrics."""
