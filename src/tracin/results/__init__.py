"""What calls return, and how results are printed and saved."""
