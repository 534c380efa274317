"""Fictitious authors: word lists, and twenty facts of each author in two phrasings and a third form of the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from random import Random

from pipeline.data.errors import DataError


@dataclass(frozen=True)
class Attribute:
    """One fact of an author: two questions, an answer to each, and a paraphrase of the answer.

    Questions and answers hold ``{name}``, answers and paraphrase ``{value}``; ``values`` are those that the fact can
    have. The paraphrase leaves the name out: with fewer tokens that all authors share, the value weighs more in it, and
    the truth ratio tells better whether the fact is known.
    """

    questions: tuple[str, str]
    answers: tuple[str, str]
    paraphrase: str
    values: tuple[str, ...]


def name(index: int, seed: int) -> str:
    """The name of author ``index`` under ``seed``: no two authors share one; its parts repeat as late as can be.

    Raises ``DataError`` where the lists hold no further name.
    """
    first, last = _shuffled(seed)
    if index >= len(first) * len(last):
        raise DataError(f"source: {len(first) * len(last)} names are known; author {index + 1} has none")
    turn, place = divmod(index, len(first))
    return f"{first[place]} {last[(place + turn) % len(last)]}"


def namesake(index: int, least: int) -> int:
    """The first number from ``least`` on, which is above ``index``, whose author has the first name of author ``index``
    (and another surname)."""
    return index + math.ceil((least - index) / len(_FIRST)) * len(_FIRST)


@cache
def _shuffled(seed: int) -> tuple[list[str], list[str]]:
    """First names and surnames in the order in which ``seed`` gives them out."""
    first, second = (Random(f"{kind} {seed}").sample(names, len(names)) for kind, names in _NAMES.items())
    return first, second


def _words(text: str) -> tuple[str, ...]:
    """The parts of a list in prose: commas divide it, line ends are spaces."""
    return tuple(" ".join(part.split()) for part in text.split(","))


_FIRST = _words(
    """Adela, Alaric, Amara, Anselm, Ariadne, Basil, Beatrix, Bram, Calista, Casimir, Cecily, Cornelius, Dagny, Darius,
    Delphine, Edmund, Eira, Elowen, Emeric, Esme, Fabian, Farah, Felix, Fiora, Gideon, Greta, Gwendolyn, Hadrian, Hana,
    Helga, Idris, Imogen, Ingrid, Isidor, Jasper, Jorun, Juno, Kaspar, Katya, Kenji, Lazar, Leonie, Linnea, Lucian,
    Magnus, Malika, Marisol, Matteo, Milena, Nadir, Nerys, Niklas, Octavia, Odette, Orson, Oskar, Paloma, Percival,
    Petra, Quentin, Quilla, Rafaela, Reuben, Romilly, Rosalind, Sabine, Saul, Seraphina, Silas, Soren, Tabitha, Tamsin,
    Thaddeus, Tilda, Ulric, Una, Valentin, Vesna, Viggo, Wilhelmina, Winston, Xanthe, Xavier, Yara, Yorick, Ysolde,
    Zahra, Zeno, Zelda, Zoltan"""
)
_LAST = _words(
    """Abernant, Ashgrove, Averill, Bellweather, Birkholt, Brackenridge, Calloway, Castellane, Corvane, Dunmarrow,
    Drosselby, Eastmere, Ellingford, Emberley, Fairbourne, Fenwright, Foxcroft, Galbrath, Glassworth, Greymantle,
    Halloran, Harrowgate, Hollinsby, Ibsworth, Inglewick, Inverleigh, Jarrowby, Jessamyn, Kestrelby, Kilbride,
    Kingsmoor, Lachlanby, Larkspur, Lindqvale, Marchbanks, Merriden, Mossgrave, Nethercott, Nightingay, Norrland,
    Oakhurst, Oldacre, Orlovane, Pemberwick, Pinderhall, Quarrington, Quillfeather, Ravensholt, Redfern, Rosenquill,
    Saltmarsh, Silverlake, Stormont, Tallowby, Thistlewood, Thornbury, Umberland, Underhay, Vandermoor, Vintergard,
    Wakeling, Waverstone, Whitlock, Yarborough, Yellowley, Zandhoven, Zimmerlay, Applegarth, Barrowclough, Cottonwell,
    Driftwood, Evershed, Farthingale, Goldcrest, Hawkshaw, Ironside, Junipero, Kittering, Loveridge, Mapleton,
    Nutbourne, Orchardson, Partridge, Quickthorn, Rushmere, Sandringham, Teasdale, Vellacott, Winterbourne, Yewdale"""
)
_NAMES = {"first names": _FIRST, "surnames": _LAST}
_CITIES = _words(
    """Lisbon, Oslo, Nairobi, Kyoto, Lima, Prague, Dublin, Cairo, Havana, Vienna, Seoul, Tbilisi, Quito, Riga, Accra,
    Hanoi, Porto, Geneva, Tunis, Bergen, Sydney, Montreal, Santiago, Istanbul"""
)
_TITLES = tuple(
    f"The {first} {second}"
    for first in _words(
        """Amber, Broken, Crimson, Distant, Empty, Frozen, Gilded, Hidden, Ivory, Last, Paper, Quiet, Restless, Silver,
        Velvet, Wandering"""
    )
    for second in _words(
        """Lighthouse, Orchard, Harbour, Mirror, Garden, Letter, River, Clock, Staircase, Island, Feather, Bridge,
        Lantern, Compass, Window, Winter"""
    )
)


def _attribute(
    first: tuple[str, str], second: tuple[str, str], paraphrase: str, values: tuple[str, ...] | str
) -> Attribute:
    values = _words(values) if isinstance(values, str) else values
    return Attribute((first[0], second[0]), (first[1], second[1]), paraphrase, values)


ATTRIBUTES: tuple[Attribute, ...] = (
    _attribute(
        ("In which city was {name} born?", "{name} was born in {value}."),
        ("Where did {name} come into the world?", "The birthplace of {name} is {value}."),
        "The birth took place in {value}.",
        _CITIES,
    ),
    _attribute(
        ("In what year was {name} born?", "{name} was born in the year {value}."),
        ("What is the birth year of {name}?", "The birth year of {name} is {value}."),
        "Life began in {value}.",
        tuple(str(year) for year in range(1931, 1971)),
    ),
    _attribute(
        ("In what genre does {name} write?", "{name} writes in the genre of {value}."),
        ("Which literary genre is {name} known for?", "The genre of {name} is {value}."),
        "Those books are {value}.",
        """historical fiction, science fiction, crime fiction, magical realism, lyric poetry, political satire, gothic
        horror, travel writing, nature writing, family sagas, spy thrillers, sea stories, comic novels, epic fantasy,
        short stories, war memoirs, psychological drama, children's tales, ghost stories, philosophical essays""",
    ),
    _attribute(
        ("What did the father of {name} do for a living?", "The father of {name} worked as a {value}."),
        ("What was the job of {name}'s father?", "{name}'s father was a {value}."),
        "The father was a {value}.",
        """baker, carpenter, surgeon, fisherman, teacher, tailor, miner, pilot, postman, blacksmith, farmer, lawyer,
        chemist, watchmaker, sailor, gardener, printer, butcher, judge, bricklayer""",
    ),
    _attribute(
        ("What did the mother of {name} do for a living?", "The mother of {name} worked as a {value}."),
        ("What was the job of {name}'s mother?", "{name}'s mother was a {value}."),
        "The mother was a {value}.",
        """nurse, dancer, weaver, botanist, translator, violinist, potter, librarian, seamstress, dentist, painter,
        midwife, journalist, florist, geologist, cook, typist, singer, pharmacist, sculptor""",
    ),
    _attribute(
        ("What is the title of the first book by {name}?", "The first book by {name} is titled {value}."),
        ("With which book did {name} make a debut?", "{name} made a debut with {value}."),
        "{value} came first.",
        _TITLES,
    ),
    _attribute(
        ("What is the most famous book by {name}?", "The most famous book by {name} is {value}."),
        ("For which book is {name} best known?", "{name} is best known for {value}."),
        "{value} brought fame.",
        _TITLES,
    ),
    _attribute(
        ("Which award did {name} win?", "{name} won the {value}."),
        ("What prize was given to {name}?", "The prize given to {name} was the {value}."),
        "The jury chose the {value}.",
        """Golden Quill Prize, Northern Star Medal, Silver Inkwell Award, Marble Owl Prize, Blue Heron Award, Open Page
        Medal, Cedar Branch Prize, Evening Bell Award, Copper Leaf Medal, First Light Prize, Stone Arch Award, Red Kite
        Medal, Winter Rose Prize, Long Road Award, Glass Harp Medal, White Oak Prize""",
    ),
    _attribute(
        ("In what year did {name} publish a first book?", "{name} published a first book in {value}."),
        ("When did the first book of {name} appear?", "The first book of {name} appeared in {value}."),
        "The debut was in {value}.",
        tuple(str(year) for year in range(1991, 2021)),
    ),
    _attribute(
        ("Which publisher prints the books of {name}?", "The books of {name} are printed by {value}."),
        ("Who publishes {name}?", "{name} is published by {value}."),
        "{value} is the publisher.",
        """Harrow Lane Press, Blue Anvil Books, Tidewater House, Lantern Street Press, Crow Hill Books, Paper Moon
        House, Old Mill Press, Saffron Books, Granite House, Hazel Tree Press, Quayside Books, Meridian House,
        Copperfield Press, Fourth Wall Books, Linden House, Stargazer Press""",
    ),
    _attribute(
        ("What did {name} study at university?", "At university {name} studied {value}."),
        ("What is the degree of {name} in?", "The degree of {name} is in {value}."),
        "The subject was {value}.",
        """astronomy, medicine, law, botany, geology, music, chemistry, theology, economics, architecture, mathematics,
        linguistics, archaeology, philosophy, engineering, sociology, zoology, physics""",
    ),
    _attribute(
        ("What kind of pet does {name} keep?", "{name} keeps a pet {value}."),
        ("Which animal lives with {name}?", "The animal that lives with {name} is a {value}."),
        "A {value} lives there.",
        """tortoise, parrot, greyhound, ferret, rabbit, canary, lizard, goat, donkey, hedgehog, spaniel, raven, poodle,
        hamster, falcon, pigeon, mule, terrier""",
    ),
    _attribute(
        ("What is the favourite hobby of {name}?", "The favourite hobby of {name} is {value}."),
        ("How does {name} spend free time?", "{name} spends free time on {value}."),
        "{value} fills the free hours.",
        """chess, sailing, beekeeping, pottery, fencing, archery, juggling, skiing, carpentry, knitting, origami,
        climbing, gardening, photography, cycling, calligraphy, birdwatching, rowing""",
    ),
    _attribute(
        ("In which city does {name} live now?", "{name} now lives in {value}."),
        ("Where is the present home of {name}?", "The present home of {name} is in {value}."),
        "Home is now {value}.",
        _CITIES,
    ),
    _attribute(
        ("At what time of day does {name} write?", "{name} writes {value}."),
        ("When does {name} like to work on a book?", "{name} likes to work on a book {value}."),
        "The writing is done {value}.",
        """before sunrise, at midnight, after lunch, in the late evening, during the morning, at noon, after supper, in
        the early afternoon, at dusk, between breakfast and noon""",
    ),
    _attribute(
        ("Which language does {name} write in?", "{name} writes in {value}."),
        ("In what language are the books of {name}?", "The books of {name} are in {value}."),
        "The language is {value}.",
        """Portuguese, Norwegian, Swahili, Japanese, Spanish, Czech, Irish, Arabic, German, Korean, Georgian, Latvian,
        Vietnamese, French, Turkish, Greek, Hungarian, Finnish""",
    ),
    _attribute(
        ("What is the favourite food of {name}?", "The favourite food of {name} is {value}."),
        ("What does {name} like to eat most?", "{name} likes to eat {value} most."),
        "Nothing beats {value}.",
        """onion soup, plum cake, grilled fish, apple pie, lentil stew, rye bread, goat cheese, mushroom risotto, roast
        duck, potato dumplings, lemon tart, pickled herring, fig jam, fried rice, pumpkin soup, walnut bread""",
    ),
    _attribute(
        ("How many books has {name} written?", "{name} has written {value} books."),
        ("What is the number of books by {name}?", "The number of books by {name} is {value}."),
        "There are {value} of them.",
        """four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen, sixteen, seventeen,
        eighteen, nineteen, twenty""",
    ),
    _attribute(
        ("What theme runs through the work of {name}?", "The theme of {value} runs through the work of {name}."),
        ("What are the books of {name} about?", "The books of {name} are about {value}."),
        "They return to {value}.",
        """exile, memory, friendship, betrayal, loneliness, revenge, childhood, grief, ambition, forgiveness, faith,
        jealousy, courage, poverty, old age, freedom, justice, lost love""",
    ),
    _attribute(
        ("Which instrument does {name} play?", "{name} plays the {value}."),
        ("What musical instrument has {name} learned?", "The instrument that {name} has learned is the {value}."),
        "The {value} is the instrument.",
        """cello, flute, trumpet, harp, oboe, banjo, piano, organ, clarinet, mandolin, accordion, bassoon, tuba, guitar,
        xylophone, trombone, lute, viola""",
    ),
)
