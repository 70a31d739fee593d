"""Questions become answers: by a checkpoint (torch) or a bundle (no torch), with pictures as they are or spoilt on purpose.

open_answerer(path) -> Answerer                 opening.py: which of both it is
Answerer.answers(samples) -> list[Given]        checkpoint_answerer.py, model_answerer.py, generation.py; bundle_answerer.py
Budgets                                         budgets.py: after how many tokens an answer is cut
Pictures                                        pictures.py: what is done to the pictures before they are shown
"""

from .answerer import Answerer, AnswererSettings, OnAnswer
from .budgets import Budgets
from .opening import open_answerer
from .pictures import CLEAN, Pictures

__all__ = ["CLEAN", "Answerer", "AnswererSettings", "Budgets", "OnAnswer", "Pictures", "open_answerer"]
