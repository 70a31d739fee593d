"""The answer that a generated text states, read strictly: what cannot be decided is None, counted and never guessed.

wording.py      what is a letter in every script, what negates, doubts or asks
letters.py      choice: a letter that is marked, leads, concludes or stands alone
option_texts.py choice without a letter: the words of exactly one option
spoken_of.py    of whom, of when and of what these words are said
yes_or_no.py    yes_no
labels.py       the same for true answers, which begin with what they state
named_fields.py the named parts of a structured answer
"""

from drivekd.data.answer_forms import options
from drivekd.evaluate.extract.letters import choice
from drivekd.evaluate.extract.yes_or_no import yes_no

__all__ = ["choice", "options", "yes_no"]
