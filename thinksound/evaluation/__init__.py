"""How good a generated sound is: against the known truth of made data, and by the field's metrics."""
