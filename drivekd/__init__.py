"""drivekd: from a data-centre driving vision-language model to the computer in a car."""

__version__ = "0.1.0"
