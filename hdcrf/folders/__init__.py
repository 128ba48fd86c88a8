"""Whole folders: pairs of files, what was predicted, scores before and after, tables and a report."""

from hdcrf.folders.outcomes import Failure, Outcome, total_scores
from hdcrf.folders.pairs import Pair, find_pairs
from hdcrf.folders.predictions import Prediction, read_labels, read_prediction
from hdcrf.folders.report import write_report
from hdcrf.folders.scores import LabelScores, score_labels
from hdcrf.folders.tables import scores_table, write_scores_csv, write_scores_json

__all__ = [
    "Failure",
    "LabelScores",
    "Outcome",
    "Pair",
    "Prediction",
    "find_pairs",
    "read_labels",
    "read_prediction",
    "score_labels",
    "scores_table",
    "total_scores",
    "write_report",
    "write_scores_csv",
    "write_scores_json",
]
