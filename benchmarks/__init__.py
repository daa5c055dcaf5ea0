"""Timings: what exact influence costs beside an ordinary forward and backward pass."""
