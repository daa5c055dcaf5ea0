"""What multiplies a query's gradient."""
