"""TracIn on real digits in seconds: wrong labels found and corrected, and one mistake explained."""

from tracin.demo.story import run as run
