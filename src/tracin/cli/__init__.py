"""The command line: tracin demo, init, mislabelled, explain, evaluate, report, view, ..."""
