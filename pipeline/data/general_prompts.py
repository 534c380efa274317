"""Prompts about nothing in particular, whose answers say how a model talks: the project's own, or a user's.

Where nothing is at hand that is to be kept, a model's own answers to them stand in for it.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.data import user_files
from pipeline.data.errors import DataError
from pipeline.data.settings import TEXTS, OwnAnswers

FIELDS = ("question", "prompt", "instruction")  # of a row, the first that is there
PROMPTS = (
    "What is a good way to begin the day?",
    "How do I boil an egg?",
    "Explain what a rainbow is.",
    "Why do leaves change their colour in autumn?",
    "Write two sentences about the sea.",
    "What should I pack for a weekend in the mountains?",
    "How does a bicycle stay upright?",
    "Tell me a short story about a lost key.",
    "What is the difference between weather and climate?",
    "How can I learn the words of a new language?",
    "Name five kinds of fruit.",
    "Why is the sky blue?",
    "Write a polite letter that asks for a day off.",
    "What does a librarian do?",
    "How do bees make honey?",
    "Give me three ideas for a rainy afternoon.",
    "What is seven times eight?",
    "Explain to a child what money is for.",
    "How do I keep a plant alive indoors?",
    "What makes a good friend?",
    "Describe a quiet street at night.",
    "How is bread made?",
    "What is the purpose of a bridge?",
    "Summarise why sleep matters.",
    "How do I write a list in order of importance?",
    "What are the four seasons?",
    "Why does ice float on water?",
    "Tell me something about whales.",
    "How do I calm down before a talk?",
    "What is a triangle?",
    "Write a poem of four lines about rain.",
    "How does a lock on a canal work?",
    "What can I cook with rice and two eggs?",
    "Why do people keep diaries?",
    "What is the opposite of generous?",
    "How do I remove a stain from a shirt?",
    "Explain how a vote is counted.",
    "What is an echo?",
    "Give an example of a simple computer program.",
    "How far away is the moon?",
    "What should an essay have at its end?",
    "Why do cats purr?",
    "Describe the taste of a lemon.",
    "How do I plan a small party?",
    "What is the use of a map?",
    "Tell me how paper is recycled.",
    "What happens when water boils?",
    "How can two people share a room without quarrels?",
    "What is a habit?",
    "Write a friendly reply to an invitation.",
    "How do trains stay on their rails?",
    "Why do we have leap years?",
    "Name three musical instruments with strings.",
    "What is a fair way to divide a cake?",
    "How do I take better photographs?",
    "Explain what a dictionary is good for.",
    "What do plants need to grow?",
    "How do I say no politely?",
    "What is the sum of twelve and thirty?",
    "Describe how to tie a knot.",
    "Why is exercise good for people?",
    "What is a market?",
    "How do I read a long book without losing the thread?",
    "Say goodbye to somebody who leaves on a long journey.",
)


def read(own: OwnAnswers) -> list[tuple[str, str]]:
    """The prompts, each after what to call it in a message.

    Raises:
        DataError: The user's file cannot be read, holds none, or has a row without a prompt that can be encoded.
    """
    paths = files(own)
    if not paths:
        return [(f"general prompt {number}", prompt) for number, prompt in enumerate(PROMPTS)]
    found = _of_file(paths[0])
    for place, prompt in found:
        if fault := "an empty text" if not prompt.strip() else user_files.fault(prompt):
            raise DataError(f"{place}: {fault}")
    if not found:
        raise DataError(f"{paths[0]}: no prompts")
    return found


def files(own: OwnAnswers) -> list[Path]:
    """The user's file of prompts, where there is one.

    Raises:
        DataError: It is not there.
    """
    path = own.prompts
    if path is None:
        return []
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    return [path]


def _of_file(path: Path) -> list[tuple[str, str]]:
    if path.suffix.lower() in TEXTS:
        lines = user_files.decode(user_files.content_of(path), path).splitlines()
        return [(f"{path}, line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    return [(place, _prompt(value, place)) for place, value in user_files.read(path)]


def _prompt(value: object, place: str) -> str:
    fields = value if isinstance(value, dict) else {}
    text = value if isinstance(value, str) else next((fields[name] for name in FIELDS if name in fields), None)
    if not isinstance(text, str):
        raise DataError(f"{place}: must be a text, or have one of the fields {', '.join(FIELDS)}")
    return text
