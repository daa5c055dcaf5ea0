"""The command line: tracin demo, init, self-influence, mislabelled, explain, verify, report."""
