"""Scores answers without a judge: extraction, metrics with baselines and intervals, reports."""

from drivekd.evaluate.answering import Answerer
from drivekd.evaluate.evaluation import evaluate
from drivekd.evaluate.scores import COLUMNS, EvaluationReport, ScoreRow, TagRow, write_report

__all__ = ["COLUMNS", "Answerer", "EvaluationReport", "ScoreRow", "TagRow", "evaluate", "write_report"]
