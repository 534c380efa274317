"""True facts about the world and about well-known authors, with short answers: knowledge that unlearning must keep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """One kind of question: ``{subject}`` is filled in, the answer is its value.

    Wrong answers are drawn from the other values and from ``others``, none of which answers any of the questions.
    """

    question: str
    facts: dict[str, str]
    others: tuple[str, ...] = ()

    @property
    def values(self) -> list[str]:
        return sorted({*self.facts.values(), *self.others})


WORLD_FACTS: tuple[Domain, ...] = (
    Domain(
        "What is the capital of {subject}?",
        {
            "France": "Paris",
            "Japan": "Tokyo",
            "Egypt": "Cairo",
            "Canada": "Ottawa",
            "Italy": "Rome",
            "Kenya": "Nairobi",
            "Peru": "Lima",
            "Norway": "Oslo",
            "Greece": "Athens",
            "Cuba": "Havana",
            "Portugal": "Lisbon",
            "Austria": "Vienna",
            "Thailand": "Bangkok",
            "Ireland": "Dublin",
            "Poland": "Warsaw",
            "Australia": "Canberra",
        },
    ),
    Domain(
        "On which continent is {subject}?",
        {
            "Nigeria": "Africa",
            "Mongolia": "Asia",
            "Spain": "Europe",
            "Argentina": "South America",
            "Mexico": "North America",
            "Vietnam": "Asia",
            "Sweden": "Europe",
        },
        ("Antarctica", "Oceania"),
    ),
    Domain(
        "What is the chemical symbol of {subject}?",
        {"gold": "Au", "silver": "Ag", "iron": "Fe", "oxygen": "O", "sodium": "Na", "lead": "Pb"},
    ),
    Domain(
        "Which planet {subject}?",
        {
            "is closest to the Sun": "Mercury",
            "is the largest in the Solar System": "Jupiter",
            "is called the Red Planet": "Mars",
            "is farthest from the Sun": "Neptune",
        },
        ("Venus", "Saturn", "Uranus"),
    ),
    Domain(
        "Which language do most people speak in {subject}?",
        {"Brazil": "Portuguese", "Germany": "German", "Colombia": "Spanish", "Hungary": "Hungarian"},
        ("Finnish", "Greek"),
    ),
    Domain(
        "How many sides does a {subject} have?",
        {"triangle": "Three", "square": "Four", "pentagon": "Five", "hexagon": "Six", "octagon": "Eight"},
        ("Ten",),
    ),
    Domain(
        "In which city is {subject}?",
        {
            "the Colosseum": "Rome",
            "the Eiffel Tower": "Paris",
            "the Brandenburg Gate": "Berlin",
            "Big Ben": "London",
            "the Sagrada Familia": "Barcelona",
        },
        ("Madrid",),
    ),
    # An ocean has only four others.
    Domain(
        "Which ocean is {subject}?",
        {
            "the largest": "The Pacific",
            "around the North Pole": "The Arctic",
            "between Africa and Australia": "The Indian",
        },
        ("The Atlantic", "The Southern"),
    ),
)

REAL_AUTHORS: tuple[Domain, ...] = (
    Domain(
        "Who wrote {subject}?",
        {
            "Romeo and Juliet": "William Shakespeare",
            "Pride and Prejudice": "Jane Austen",
            "War and Peace": "Leo Tolstoy",
            "Crime and Punishment": "Fyodor Dostoevsky",
            "Don Quixote": "Miguel de Cervantes",
            "Oliver Twist": "Charles Dickens",
            "Moby-Dick": "Herman Melville",
            "Frankenstein": "Mary Shelley",
            "Dracula": "Bram Stoker",
            "Jane Eyre": "Charlotte Brontë",
            "Wuthering Heights": "Emily Brontë",
            "The Trial": "Franz Kafka",
            "Ulysses": "James Joyce",
            "Mrs Dalloway": "Virginia Woolf",
            "The Old Man and the Sea": "Ernest Hemingway",
            "The Great Gatsby": "F. Scott Fitzgerald",
            "Animal Farm": "George Orwell",
            "Brave New World": "Aldous Huxley",
            "The Hobbit": "J. R. R. Tolkien",
            "Les Misérables": "Victor Hugo",
            "Madame Bovary": "Gustave Flaubert",
            "The Three Musketeers": "Alexandre Dumas",
            "Around the World in Eighty Days": "Jules Verne",
            "The Divine Comedy": "Dante Alighieri",
            "Faust": "Johann Wolfgang von Goethe",
            "One Hundred Years of Solitude": "Gabriel García Márquez",
            "Things Fall Apart": "Chinua Achebe",
            "The Time Machine": "H. G. Wells",
            "Treasure Island": "Robert Louis Stevenson",
            "The Jungle Book": "Rudyard Kipling",
        },
    ),
    Domain(
        "In which city was the author {subject} born?",
        {
            "Oscar Wilde": "Dublin",
            "Franz Kafka": "Prague",
            "Charles Dickens": "Portsmouth",
            "Dante Alighieri": "Florence",
            "Jules Verne": "Nantes",
            "Edgar Allan Poe": "Boston",
            "Hans Christian Andersen": "Odense",
            "Fyodor Dostoevsky": "Moscow",
            "Jorge Luis Borges": "Buenos Aires",
            "Marcel Proust": "Paris",
        },
    ),
)
