"""Made data: short clips whose picture, sound and texts come from one known truth."""
