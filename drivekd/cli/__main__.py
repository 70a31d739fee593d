"""`python -m drivekd.cli`: what launchers of many processes start."""

from .verbs import main

main()
