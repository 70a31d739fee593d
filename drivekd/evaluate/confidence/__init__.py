"""How likely an answer is right: measured on labelled records, stored for the car (docs/calibration.md).

judged.py    answers of choice and yes/no questions -> mean log-probability, right or wrong, scene
halves.py    two halves that share no scene: fitted on one, reported on the other
fit.py       Platt's logistic map of the mean log-probability, and the threshold for a wished risk
curves.py    expected calibration error, risk by coverage
report.py    what was found, by capability, as a table and as calibration.json
calibrate.py what `drivekd calibrate` does
"""
