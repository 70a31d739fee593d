"""The locale decides nothing: under Latin-1 every file means what it means under UTF-8, and no letter ends a program."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from latin_1 import latin_1_environment, utf_8_environment
from slow_tokenizer import write_slow_tokenizer
from tiny_run import SETTINGS, make_tokenizer, write_tiny_run

pytestmark = pytest.mark.e2e

QUESTION = "Ist die Straße links frei?"
ARROW = "weiter → 🚗 über die Brücke"

# Reads every kind of file that has words in it and prints what it found, as ASCII.
READER = """
import json, sys
from pathlib import Path

folder = Path(sys.argv[1])
found = {"locale": (folder / "umlaut.txt").read_text(errors="replace")}  # as a careless program reads it

from drivekd.config import load_config
from drivekd.data.readers import read_samples
from drivekd.evaluate.answering import AnswererSettings, open_answerer
from drivekd.export.source.prompts import load_prompts
from drivekd.hf_checkpoint import Checkpoint, CheckpointFiles, load_processor

question = read_samples(folder / "records.json")[0].question
found["question"] = question
found["lines"] = [sample.question for sample in read_samples(folder / "train.json")][:2]
found["slow ids"] = CheckpointFiles(folder / "slow").tokenizer.encode(question).ids
found["fast ids"] = load_processor(folder / "student").prompts.suffix(question)
found["config"] = load_config(folder / "run.yaml").prompts.planning
found["prompts"] = load_prompts([CheckpointFiles(folder / "student")], None).prompts["planning"]
answerer = open_answerer(folder / "student", AnswererSettings(max_new_tokens=6))
found["answers"] = [given.text for given in answerer.answers(read_samples(folder / "train.json")[:3])]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Ran:
    """What one process said."""

    stdout: bytes
    stderr: bytes
    code: int

    @property
    def found(self) -> dict[str, Any]:
        assert self.code == 0, self.stderr.decode(errors="replace")
        value: dict[str, Any] = json.loads(self.stdout)
        return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run whose every file has letters beyond ASCII, and a Qwen2 tokenizer in two files."""
    folder = tmp_path_factory.mktemp("words")
    run = write_tiny_run(folder, make_tokenizer())
    (folder / "umlaut.txt").write_text(QUESTION, encoding="utf-8")
    records = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    for record in records:
        record["messages"][0]["content"] = record["messages"][0]["content"].replace("Why?", QUESTION)
    asked = {**records[0], "messages": [{"role": "user", "content": f"<image>\n{QUESTION}"}, records[0]["messages"][1]]}
    for name, value in (("train.json", records), ("records.json", [asked])):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    run.yaml.write_text(
        json.dumps(SETTINGS | {"prompts": {"planning": QUESTION}}, ensure_ascii=False),
        encoding="utf-8",  # JSON is YAML
    )
    (run.student / "prompts.json").write_text(
        json.dumps({"prompts": {"planning": f"{QUESTION} {ARROW}"}, "max_new_tokens": 6}, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "slow").mkdir()
    write_slow_tokenizer(folder / "slow")
    wrong = {**asked, "question_type": ARROW}
    (folder / "wrong.yaml").write_text(f"{ARROW}: 1\n", encoding="utf-8")
    (folder / "wrong.json").write_text(json.dumps([wrong], ensure_ascii=False), encoding="utf-8")
    return folder


def python(folder: Path, environment: Any, *arguments: str) -> Ran:
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, cwd=folder)
    return Ran(done.stdout, done.stderr, done.returncode)


@pytest.fixture(scope="module")
def latin_1(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return latin_1_environment(tmp_path_factory.mktemp("locale"))


def test_every_file_says_the_same_under_latin_1(folder: Path, latin_1: Any) -> None:
    with ThreadPoolExecutor(2) as pool:  # both wait for torch to be imported
        environments = (latin_1, utf_8_environment())
        here, there = (
            ran.found for ran in pool.map(lambda chosen: python(folder, chosen, "-c", READER, str(folder)), environments)
        )
    assert there.pop("locale") == QUESTION
    assert here.pop("locale") != QUESTION, "this process has a UTF-8 locale: the test sees nothing"
    assert here == there
    assert there["question"] == QUESTION
    assert there["config"] == QUESTION
    assert there["prompts"] == f"{QUESTION} {ARROW}"
    assert QUESTION in " ".join(there["lines"])


COMMANDS = {
    "an error that names what is no letter here": (["data", "validate", "wrong.json"], "\\u2192"),
    "a table": (["eval", "student", "--data", "train.json", "--out", "{out}"], "answers"),
    "a run's questions": (["train", "wrong.yaml", "--out", "{out}"], "\\u2192"),
}


@pytest.mark.parametrize(("command", "words"), COMMANDS.values(), ids=COMMANDS)
def test_no_letter_ends_a_command(folder: Path, latin_1: Any, tmp_path: Path, command: list[str], words: str) -> None:
    arguments = [part.format(out=tmp_path / "out") for part in command]
    ran = python(folder, latin_1, "-m", "drivekd.cli", *arguments)
    said = ran.stdout + ran.stderr
    assert b"Traceback" not in said, said.decode(errors="replace")
    assert said
    assert words.encode() in said


def test_an_arrow_on_stdout_is_written_as_its_number(folder: Path, latin_1: Any) -> None:
    code = (
        "from drivekd.log import take_every_letter; {}\n"
        "from drivekd.tables import print_table\n"
        f"print_table('\\u2192', ['Frage'], [[{ARROW!a}]])\n"
        f"print({ARROW!a})"
    )
    careless = python(folder, latin_1, "-c", code.format("pass"))
    assert b"UnicodeEncodeError" in careless.stderr
    careful = python(folder, latin_1, "-c", code.format("take_every_letter()"))
    assert careful.code == 0
    assert careful.stdout.count(b"\\u2192") == 3
    assert b"\\U0001f697" in careful.stdout


def test_the_command_line_takes_every_letter(folder: Path, latin_1: Any) -> None:
    code = "from drivekd.cli import verbs\nverbs.app = lambda **_: print('\\u2192')\nverbs.main()"
    ran = python(folder, latin_1, "-c", code)
    assert (ran.code, ran.stdout) == (0, b"\\u2192\n"), ran.stderr


def test_a_picture_whose_name_this_locale_cannot_spell_is_named_with_the_way_out(folder: Path, latin_1: Any) -> None:
    code = (
        "from pathlib import Path\nfrom drivekd.images import load_image\nfrom drivekd.errors import DataError\n"
        "for name in ('stra\\u00dfe.png', 'pfeil-\\u2192.png'):\n"
        "    try: load_image(Path(name))\n"
        "    except DataError as error: print(ascii(str(error)))"
    )
    ran = python(folder, latin_1, "-c", code)
    assert ran.stdout.count(b"set PYTHONUTF8=1 if the file has a UTF-8 name") == 2, ran.stderr
