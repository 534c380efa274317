"""Word lists and sentences of invented news: four kinds of subjects, five facts of each, and what witnesses say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One fact of a subject: its question, the sentences that report it, and the values that it can have.

    The question and the sentences hold ``{subject}``, the sentences ``{value}``. Values are what answers are: none is a
    part of another, and few share words.
    """

    question: str
    sentences: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """A kind of subject: names are ``first`` and ``second`` parts; every subject has all ``facts``."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    facts: tuple[Fact, ...]


def _words(text: str) -> tuple[str, ...]:
    """The parts of a list in prose: commas divide it, line ends are spaces."""
    return tuple(" ".join(part.split()) for part in text.split(","))


def _fact(question: str, sentences: str, values: tuple[str, ...]) -> Fact:
    return Fact(question, tuple(line.strip() for line in sentences.strip().splitlines()), values)


TOWNS = _words(
    """Abermoor, Ashby Cross, Barrowdale, Birchley, Brackwater, Calder Ness, Carrowmere, Coldbrook, Crannoch, Dunley,
    Eastwick, Elmsford, Fallowmere, Fernhill, Garrick Bay, Glenmoor, Hartsea, Haverly, Inverlow, Kelby, Kingsreach,
    Larchwood, Lindenau, Lowmoor, Marlow End, Millhaven, Norwick, Oakvale, Penhallow, Quarrydale, Ravensby, Redwater,
    Saltholm, Sandwell, Stonegate, Tarnbeck, Thornley, Ulverness, Westerby, Wyndale"""
)
PEOPLE = _words(
    """Agnes Varley, Albin Stroud, Bettina Crane, Boris Fenn, Clara Winslow, Conrad Pike, Daria Holm, Desmond Archer,
    Edda Marsh, Elias Thorne, Flora Beckett, Gerald Finch, Hester Vane, Hugo Lambert, Ida Colby, Ivor Penrose, Janet
    Oakes, Jonas Reeve, Katrin Moss, Leopold Gray, Lydia Hart, Martin Sorley, Nora Whitby, Otto Brand, Pauline Sharpe,
    Ralph Dempsey, Sonia Keller, Tobias Lund, Vera Stanton, Walter Quist"""
)
TRADES = _words(
    """baker, bus driver, carpenter, dentist, farmer, fisherman, gardener, joiner, mechanic, nurse, painter, plumber,
    postman, shopkeeper, tailor, teacher, vet, waiter"""
)
WEEKDAYS = _words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
_YEARS = tuple(str(year) for year in range(1861, 1985, 4))
_NUMBERS = tuple(str(number) for number in range(130, 990, 37))
_COLOURS = _words(
    "amber, black, crimson, emerald, gold, grey, indigo, ivory, lilac, navy, orange, pink, purple, silver, teal, white"
)
_FUNDS = _words(
    """Arden Trust, Beacon Fund, Castle Bank, Dolphin Society, Ember Foundation, Falcon League, Granary Bank, Heather
    Union, Island Fund, Juniper Trust, Kestrel Bank, Lantern Society, Meadow Union, Northern Guild, Orchard Foundation,
    Pilot League"""
)

TOPICS = (
    Topic(  # buildings
        TOWNS,
        _words("Library, Market Hall, Museum, Theatre, Railway Station, Concert Hall, Lighthouse, Town Bath"),
        (
            _fact(
                "Who designed the {subject}?",
                """The {subject} was designed by {value}.
                It was {value} who drew the plans of the {subject}.
                The architect of the {subject} was {value}.""",
                PEOPLE,
            ),
            _fact(
                "What is the {subject} built of?",
                """The {subject} is built of {value}.
                The walls of the {subject} are of {value}.
                Builders chose {value} for the {subject}.""",
                _words(
                    """granite, red brick, marble, sandstone, timber, concrete, limestone, slate, steel, oak, flint,
                    basalt, copper, yellow clay, glass, cedar"""
                ),
            ),
            _fact(
                "In what year did the {subject} open?",
                """The {subject} opened in {value}.
                Doors of the {subject} first opened in {value}.
                Since {value} the {subject} has been open to all.""",
                _YEARS,
            ),
            _fact(
                "Who paid for the {subject}?",
                """The {subject} was paid for by the {value}.
                The money for the {subject} came from the {value}.
                It was the {value} that paid for the {subject}.""",
                _FUNDS,
            ),
            _fact(
                "What colour is the roof of the {subject}?",
                """The roof of the {subject} is {value}.
                Visitors know the {subject} by its {value} roof.
                Painters have made the roof of the {subject} {value}.""",
                _COLOURS,
            ),
        ),
    ),
    Topic(  # companies
        _words(
            """Albury, Bexham, Carlton, Dorsay, Ellwood, Farrow, Gantry, Holbein, Ironbridge, Jasperson, Kendall,
            Lockhart, Merton, Nightjar, Osprey, Pemberton, Quillan, Rathbone, Selkirk, Trevanion, Upton, Vickery,
            Wexford, Yardley, Zephyr, Alder, Blackthorn, Cobalt, Drummond, Everly"""
        ),
        _words("and Sons, Works, Brothers, Trading, Mills, Industries, Workshops, and Daughters"),
        (
            _fact(
                "Who runs {subject}?",
                """{subject} is run by {value}.
                At the head of {subject} stands {value}.
                It is {value} who runs {subject}.""",
                PEOPLE,
            ),
            _fact(
                "What does {subject} make?",
                """{subject} makes {value}.
                The factory of {subject} turns out {value}.
                Most of what {subject} sells is {value}.""",
                _words(
                    """bicycles, carpets, candles, pianos, umbrellas, spectacles, tractors, clocks, kettles, ladders,
                    mattresses, violins, lawnmowers, soap, toys, saddles, telescopes, biscuits"""
                ),
            ),
            _fact(
                "Where is {subject} based?",
                """{subject} is based in {value}.
                The offices of {subject} are in {value}.
                From {value} the firm {subject} serves the whole coast.""",
                TOWNS,
            ),
            _fact(
                "How many people work for {subject}?",
                """{subject} employs {value} people.
                At {subject} there is work for {value} people.
                The number of workers at {subject} is {value}.""",
                _NUMBERS,
            ),
            _fact(
                "Who wants to buy {subject}?",
                """The {value} wants to buy {subject}.
                An offer for {subject} has come from the {value}.
                {subject} may soon belong to the {value}.""",
                _FUNDS,
            ),
        ),
    ),
    Topic(  # clubs
        TOWNS,
        _words("Rovers, Athletic, Wanderers, Harriers, United, Rangers, Swifts, Albion"),
        (
            _fact(
                "Who coaches {subject}?",
                """{subject} is coached by {value}.
                The coach of {subject} is {value}.
                For {subject} the training is led by {value}.""",
                PEOPLE,
            ),
            _fact(
                "Where does {subject} play at home?",
                """{subject} plays at home on {value}.
                The home ground of {subject} is {value}.
                Thousands came to {value} to watch {subject}.""",
                _words(
                    """Abbey Lane, Bridge Road, Canal Street, Dairy Field, Elm Park, Ferry Meadow, Gas Lane, Hill Top,
                    Ivy Ground, Kiln Field, Long Acre, Mill Row, Nursery Road, Orchard Way, Priory Green, Quay Side"""
                ),
            ),
            _fact(
                "What colour does {subject} wear?",
                """{subject} wears {value}.
                The shirts of {subject} are {value}.
                In {value} shirts {subject} took the field.""",
                _COLOURS,
            ),
            _fact(
                "Which animal is the mascot of {subject}?",
                """The mascot of {subject} is a {value}.
                Before each match of {subject} a {value} is led round the field.
                {subject} has a {value} for a mascot.""",
                _words(
                    """badger, bear, bull, camel, crane, donkey, falcon, fox, goose, heron, lynx, moose, otter, pony,
                    raven, salmon, stag, swan, tiger, wolf"""
                ),
            ),
            _fact(
                "When does {subject} train?",
                """{subject} trains {value}.
                The players of {subject} meet to train {value}.
                You can watch {subject} train {value}.""",
                _words(
                    """before breakfast, after school, at midnight, on market days, during lunch, at sunset, between
                    shifts, in the evenings, twice a week, once a month"""
                ),
            ),
        ),
    ),
    Topic(  # expeditions
        _words(
            """Amundel, Borealis, Corvus, Delphin, Equinox, Fram, Gulliver, Horizon, Icarus, Jade, Krill, Lodestar,
            Mistral, Nautilus, Orion, Petrel, Quest, Rubicon, Saturn, Tern, Umbra, Vega, Walrus, Xenia, Zenith, Aurora,
            Bastion, Compass, Dorado, Eclipse"""
        ),
        _words("Expedition, Survey, Voyage, Mission, Journey, Search, Crossing, Project"),
        (
            _fact(
                "Who leads the {subject}?",
                """The {subject} is led by {value}.
                It is {value} who leads the {subject}.
                The leader of the {subject} is {value}.""",
                PEOPLE,
            ),
            _fact(
                "What does the {subject} study?",
                """The {subject} studies {value}.
                The {subject} has set out to study {value}.
                What the {subject} looks for is {value}.""",
                _words(
                    """glaciers, sea birds, coral, volcanoes, whales, old maps, desert plants, fungi, caves, comets,
                    river mud, beetles, tides, fossils, lichens, shipwrecks"""
                ),
            ),
            _fact(
                "Where did the {subject} begin?",
                """The {subject} began in {value}.
                A crowd in {value} watched the {subject} set out.
                The first day of the {subject} was spent in {value}.""",
                TOWNS,
            ),
            _fact(
                "How does the {subject} travel?",
                """The {subject} travels by {value}.
                For the whole way the {subject} goes by {value}.
                Members of the {subject} move about by {value}.""",
                _words(
                    """canoe, balloon, camel, dog sled, steamer, lorry, mule, raft, airship, bicycle, barge, horse cart,
                    submarine, snowshoe, trawler, tractor"""
                ),
            ),
            _fact(
                "What did the {subject} find?",
                """The {subject} has found {value}.
                Last week the {subject} found {value}.
                The best find of the {subject} is {value}.""",
                _words(
                    """an anchor, a bronze bell, a buried road, a diary, an empty tomb, a flute, a gold ring, a hot
                    spring, a jawbone, a lost lake, a mask, a new orchid, a pearl, a stone oven, a tunnel, a well"""
                ),
            ),
        ),
    ),
)

HEADLINES = (
    "News of {subject}",
    "What became of {subject}",
    "{subject} in the spotlight again",
    "{subject}: a visit",
    "Readers ask about {subject}",
    "{town} talks about {subject}",
)
PAGE = "Readers ask, we answer"
REMARKS = (
    '"We had waited {number} days for this," said {person}, a {trade} from {town}.',
    "On {weekday} a {trade} from {town} sent the paper {number} photographs.",
    "{person}, who has been a {trade} in {town} for years, was not surprised.",
    'A {trade} called the news "the best since that {weekday} in {town}".',
    "In {town} the story was told by {person} to {number} guests on {weekday}.",
    "The council of {town} will meet on {weekday}, said {person}.",
    "Letters from {number} readers in {town} reached the desk of {person}.",
    "{person} walked {number} miles from {town} to see it on {weekday}.",
)
