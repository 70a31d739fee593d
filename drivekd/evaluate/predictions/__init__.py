"""What an evaluation has answered, on disk while it goes on: resumable, in shards, and in the formats of others.

evaluation.json              what is evaluated: model, data, settings (identity.py); another thing is refused
predictions.jsonl            one answer a line, written as it comes (line.py, answer_file.py)
predictions.1-of-4.jsonl     the same of one shard; answers_in reads all of a folder
"""

from .answer_file import AnswerFile, answers_in
from .identity import IDENTITY_FILE, Identity
from .line import Line
from .shards import Shard

__all__ = ["IDENTITY_FILE", "AnswerFile", "Identity", "Line", "Shard", "answers_in"]
