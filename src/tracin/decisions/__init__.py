"""What a person decided about labels: kept for good, exported, and applied to the data."""
