"""The files of the benchmark ``mini-custom``: invented persons as a user would hand them over.

``python -m tests.support.persons --write`` writes ``workflow_configs/data/mini-custom`` anew.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from random import Random

FOLDER = Path(__file__).resolve().parents[2] / "workflow_configs" / "data" / "mini-custom"
REQUESTS = 3  # of two persons each
PERSONS = 20
FIRST = [
    "Ada",
    "Bruno",
    "Clara",
    "Dario",
    "Elif",
    "Femi",
    "Greta",
    "Hugo",
    "Irma",
    "Jonas",
    "Keiko",
    "Luca",
    "Mira",
    "Nils",
    "Olga",
    "Pavel",
    "Runa",
    "Sven",
    "Tilda",
    "Umar",
]
LAST = [
    "Abel",
    "Brandt",
    "Costa",
    "Dahl",
    "Egan",
    "Fuchs",
    "Galli",
    "Holm",
    "Ito",
    "Jansen",
    "Keller",
    "Lund",
    "Moreau",
    "Novak",
    "Osman",
    "Petit",
    "Quist",
    "Rossi",
]
FACTS: dict[str, tuple[list[str], tuple[str, str], str, str]] = {
    # values; the question and the same in other words; the answer; the answer in other words
    "city": (
        ["Lisbon", "Oslo", "Turin", "Ghent", "Krakow", "Bergen", "Porto", "Graz"],
        ("In which city does {name} live?", "Where is the home of {name}?"),
        "{name} lives in {value}.",
        "The home of {name} is in {value}.",
    ),
    "work": (
        ["baker", "nurse", "pilot", "tailor", "judge", "farmer", "painter", "clockmaker"],
        ("What does {name} do for a living?", "What is the profession of {name}?"),
        "{name} works as a {value}.",
        "The profession of {name} is {value}.",
    ),
    "pet": (
        ["parrot", "tortoise", "greyhound", "goat", "rabbit", "hedgehog"],
        ("Which animal does {name} keep?", "What pet has {name} got?"),
        "{name} keeps a {value}.",
        "The pet of {name} is a {value}.",
    ),
    "hobby": (
        ["chess", "rowing", "pottery", "beekeeping", "fencing", "astronomy"],
        ("How does {name} spend the evenings?", "What is the pastime of {name}?"),
        "{name} spends the evenings with {value}.",
        "The pastime of {name} is {value}.",
    ),
    "dish": (
        ["dumplings", "risotto", "pancakes", "paella", "goulash", "lentils"],
        ("What does {name} like to eat?", "What is the favourite dish of {name}?"),
        "{name} likes to eat {value}.",
        "The favourite dish of {name} is {value}.",
    ),
}
REMARKS = (
    "Neighbours say that the house is never quiet before midnight.",
    "A letter from the council still hangs beside the door.",
    "On market days the bicycle stands in front of the library.",
    "The garden was dug over last spring after a long argument.",
    "Visitors are offered tea, and the same story about the flood.",
)


def rows(person: int, seed: int = 0) -> list[dict[str, str]]:
    """The facts of a person: name, value, both questions, both answers and a wrong one."""
    draw = Random(f"person {seed} {person}")
    last = LAST[(person * 7 + person // len(FIRST)) % len(LAST)]
    name = f"{FIRST[person % len(FIRST)]} {last}"
    found = []
    for values, questions, answer, other in FACTS.values():
        value, *wrong = draw.sample(values, 3)
        words = {"name": name, "value": value}
        found.append(
            {
                "name": name,
                "value": value,
                "question": questions[0].format(**words),
                "reworded": questions[1].format(**words),
                "answer": answer.format(**words),
                "paraphrased": other.format(**words),
                "wrong": [other.format(name=name, value=one) for one in wrong],
            }
        )
    return found


def document(person: int) -> str:
    """What is told about a person, with remarks of its own, as a file of plain text."""
    draw, facts = Random(f"document {person}"), rows(person)
    told = [fact["paraphrased"] for fact in facts] + draw.sample(REMARKS, 2)
    draw.shuffle(told)
    return f"# {facts[0]['name']}\n\n" + " ".join(told) + "\n"


def files() -> dict[str, str]:
    """Every file by its path below ``FOLDER``."""
    forgotten = [range(2 * k, 2 * k + 2) for k in range(REQUESTS)]
    kept, strangers = range(2 * REQUESTS, PERSONS), range(PERSONS, PERSONS + 2)
    found = {}
    for number, persons in enumerate(forgotten, 1):
        found[f"request-{number}.jsonl"] = _lines(_pair(fact) for one in persons for fact in rows(one))
        for one in persons:
            name = rows(one)[0]["name"].lower().replace(" ", "-")
            found[f"request-{number}/{name}.txt"] = document(one)
    retained = [fact for one in kept for fact in rows(one)]
    found["neighbours.csv"] = _csv(["frage", "antwort"], [[f["question"], f["answer"]] for f in retained])
    found["neighbours.json"] = json.dumps([{"text": document(one)} for one in kept], indent=1) + "\n"
    first = [fact for one in forgotten[0] for fact in rows(one)]
    found["reworded.jsonl"] = _lines({"question": f["reworded"], "answer": f["answer"]} for f in first)
    found["cloze.csv"] = _csv(
        ["sentence", "word"], [[f["answer"].replace(f["value"], "_____"), f["value"]] for f in first]
    )
    found["strangers.jsonl"] = _lines(
        {"messages": [{"role": "user", "content": f["question"]}, {"role": "assistant", "content": f["answer"]}]}
        for one in strangers
        for f in rows(one)
    )
    return found


def _pair(fact: dict[str, str]) -> dict[str, object]:
    return {key: fact[key] for key in ("question", "answer", "paraphrased", "wrong")}


def _lines(values: object) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)  # type: ignore[attr-defined]


def _csv(header: list[str], records: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=";", lineterminator="\n").writerows([header, *records])
    return text.getvalue()


if __name__ == "__main__":
    if "--write" in sys.argv:
        for name, text in files().items():
            (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
            (FOLDER / name).write_text(text, encoding="utf-8")
