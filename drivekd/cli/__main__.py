"""`python -m drivekd.cli`: what launchers of many processes start."""

from drivekd.cli import main

main()
