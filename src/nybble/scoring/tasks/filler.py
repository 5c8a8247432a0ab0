"""Plain English prose without end, from a small grammar: what facts are hidden in.

It has no digits, no names and none of the words that tasks use as answers; sentences repeat
seldom enough (more than ten to the ninth are possible) that a context of 128K tokens is no loop.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

PEOPLE = tuple(
    """actor apprentice archivist artist assistant aunt boatman bookseller builder caretaker clerk
    coachman colleague cook cousin critic dancer daughter director driver editor engineer farmer
    father gardener grandmother guard guest guide historian judge landlord lawyer lecturer librarian
    mayor mechanic merchant messenger mother musician nephew neighbour nurse officer passenger
    pensioner photographer pilot poet porter postman printer professor sailor scholar secretary
    servant sister soldier stranger student surveyor teacher tenant tourist traveller visitor
    waiter watchman widow writer"""
    .split()
)  # fmt: skip

MANNERS = tuple(
    """absent-minded busy careful cautious cheerful clumsy curious diligent elderly forgetful
    friendly generous grumpy honest impatient lazy modest nervous new old polite practical quiet
    serious sleepy sober strict stubborn talkative tall thoughtful tired worried young"""
    .split()
)  # fmt: skip

THINGS = tuple(
    """account article atlas bag basket bill blueprint book bowl box brochure broom calendar
    cart catalogue certificate chart chest coat coin contract costume crate cup curtain cushion desk
    diary dictionary document drawing essay file frame hat invitation jar journal key ladder lamp
    ledger letter list manual manuscript map mattress memo menu message newspaper note notebook
    notice overcoat packet painting parcel pen photograph picture plan plate portfolio poster
    receipt record report sack scarf sheet sign sketch statement stool story suitcase table
    telegram timetable tool toolbox towel trunk typewriter"""
    .split()
)  # fmt: skip

QUALITIES = tuple(
    """ancient battered beautiful borrowed broken cheap clean costly crooked damaged damp dusty
    empty expensive faded familiar fine forgotten half-finished handsome heavy huge large light
    little long lost narrow neat ordinary plain precious rare rough rusty shabby simple small soft
    spare square strange thick thin torn ugly unopened unusual useful valuable wide worn"""
    .split()
)  # fmt: skip

PLACES = tuple(
    """across the square|after the second bend of the road|at the back of the shop|
    at the bus stop|at the corner of the street|at the edge of the forest|
    at the end of the corridor|at the harbour|at the town hall|before the gate|behind the church|
    behind the counter|beside the river|between the two houses|by the fireplace|by the window|
    down in the cellar|in a side street|in front of the theatre|in the attic|in the backyard|
    in the garden|in the hall|in the hospital|in the kitchen|in the library|in the market|
    in the museum|in the old quarter|in the park|in the reading room|in the schoolyard|
    in the shade of the trees|in the stable|in the valley|in the waiting room|in the workshop|
    near the bridge|near the cemetery|near the railway station|next to the well|on the balcony|
    on the first floor|on the hill|on the opposite bank|on the platform|on the shore|
    on the stairs|on the terrace|on the way to the mill|outside the courthouse|
    outside the village|under the arches|under the roof"""
    .replace("\n    ", "").split("|")
)  # fmt: skip

TIMES = tuple(
    """after a long pause|after breakfast|after dinner|after the concert|after the holidays|
    after the meeting|all day long|all of a sudden|as usual|at dawn|at dusk|at first|at last|
    at noon|at the beginning of the week|at the weekend|before sunrise|before the rain came|
    by and by|during the break|during the night|early in the morning|every now and then|
    for a while|for the first time|from time to time|in spring|in summer|in the afternoon|
    in the end|in the evening|in the meantime|in winter|just before lunch|last year|late at night|
    later that day|not long ago|on market day|on the same evening|once again|once upon a time|
    one day|over the weekend|sooner or later|that morning|the day before|the following week|
    towards evening|two days later|without any hurry"""
    .replace("\n    ", "").split("|")
)  # fmt: skip

HANDLED = tuple(
    """bought carried cleaned collected copied described dropped examined exchanged fetched
    forgot found hid inspected kept lent lifted lost mended mentioned moved needed noticed offered
    ordered packed pointed-at praised prepared recognised refused remembered repaired returned
    searched-for showed sold stored studied threw-away took unpacked wanted washed weighed
    wrapped"""
    .split()
)  # fmt: skip

ACTED = tuple(
    """arrived|complained|fell asleep|got lost|hesitated|hurried home|kept silent|laughed aloud|
    listened|looked around|lost patience|nodded|paused|rested|sat down|shook hands with everybody|
    shrugged|sighed|slept badly|smiled|sneezed|spoke in a low voice|stood still|stumbled|
    turned round|waited|walked slowly|whistled a tune|worked hard|yawned"""
    .replace("\n    ", "").split("|")
)  # fmt: skip

WHOLE = tuple(
    """Nobody had expected anything else.|The weather changed soon afterwards.|It was very quiet.|
    There was much to talk about.|A cold wind blew from the sea.|The clouds were low and heavy.|
    The street was almost empty.|Everything took longer than planned.|It had rained for hours.|
    Most of the shops were closed.|The doors stood open.|Somebody was laughing far away.|
    The road was dry and dusty.|The bells rang as they always did.|That was all there was to say.|
    The lamps were lit one after another.|Nothing of the kind had happened before.|
    The train was late again.|It smelled of wet leaves and smoke.|Even the children were tired."""
    .replace("\n    ", "").split("|")
)  # fmt: skip

CLOSERS = (
    "So the day went on without any further events.",
    "Then there was not much left to do.",
    "It was getting late by then.",
    "Nobody minded.",
    "So be it.",
    "Yes.",
)


def sentences(rng: random.Random) -> Iterator[str]:
    """Sentences without end; about every sixth ends with a line break, as a paragraph does."""
    while True:
        for _ in range(rng.randint(3, 8)):
            yield _sentence(rng)
        yield _sentence(rng) + "\n"


def _sentence(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.06:
        return rng.choice(WHOLE)
    who = _who(rng)
    if kind < 0.30:
        text = f"{_time(rng)}, {who} {_handled(rng)} {_where(rng)}"
    elif kind < 0.50:
        text = f"{who} {_handled(rng)} {_time(rng)}"
    elif kind < 0.62:
        text = f"{who} {rng.choice(ACTED)} {_where(rng)} and {_handled(rng)}"
    elif kind < 0.72:
        text = f"while {who} {_handled(rng)}, {_who(rng)} {rng.choice(ACTED)}"
    elif kind < 0.80:
        text = f"{who} said that {_thing(rng)} had been left {_where(rng)}"
    elif kind < 0.88:
        text = f"{_where(rng)}, {who} and {_who(rng)} talked about {_thing(rng)}"
    elif kind < 0.94:
        text = f"{who} did not know who had {rng.choice(('seen', 'taken'))} {_thing(rng)}"
    else:
        text = f"{who} {rng.choice(ACTED)}, because {_thing(rng)} was missing"
    return text[0].upper() + text[1:] + "."


def _who(rng: random.Random) -> str:
    return f"the {rng.choice(MANNERS)} {rng.choice(PEOPLE)}"


def _thing(rng: random.Random) -> str:
    return f"the {rng.choice(QUALITIES)} {rng.choice(THINGS)}"


def _handled(rng: random.Random) -> str:
    return f"{rng.choice(HANDLED).replace('-', ' ')} {_thing(rng)}"


def _where(rng: random.Random) -> str:
    return rng.choice(PLACES)


def _time(rng: random.Random) -> str:
    return rng.choice(TIMES)
