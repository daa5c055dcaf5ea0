"""What questions return, and how it is shown and saved."""
