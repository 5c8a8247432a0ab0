"""A corpus of Markdown files, an index over it that searches by words, and servers that answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from nybble.errors import NybbleError
from nybble.rag.answers import Answer, Citation, Options, Packed, Server, Source, Timings, Usage
from nybble.rag.eval_answers import Lane
from nybble.rag.passages import Hit, Passage
from nybble.rag.question_words import pieces

_DOCUMENTS = {
    "ardel": (
        "Ardel",
        "Harbour",
        """
The harbour was dredged in 1713 by engineers who had crossed the northern strait from Bruck.
Its breakwater carries a lighthouse that keepers call "the green lantern" because of its glass.
Fishing crews unload herring at the quay before the auction opens every winter morning.
""",
        "Ferry timetable",
        """
Passengers for the islands board at the eastern pontoon, where luggage is weighed beforehand.
During storms the captain may cancel any crossing after consulting `tide_monitor` readings.
Bicycles travel without a ticket unless the lower deck is reserved for cattle.
""",
    ),
    "bruck": (
        "Bruck",
        "Railway",
        """
Trains on the coastal branch are limited to 48 km on the old viaduct since its foundations moved.
The signal box answers to `block_control` whenever shunting engines request an empty platform.
Freight wagons loaded with slate leave the sidings after inspectors have signed their papers.
""",
        "Engine shed",
        """
Locomotives are coaled overnight by two stokers who earn a bonus called "soot money" each month.
Boilers must be emptied and scraped after 1,250 hours under steam, according to the foreman.
A turntable behind the shed was bought second hand from the railway museum at Dunmar.
""",
    ),
    "corvin": (
        "Corvin",
        "Vineyards",
        """
Growers on the southern terraces pick their grapes late, often after the first frost in November.
Barrels are labelled with the estate code `CRV_RESERVE` and sealed using beeswax from local hives.
Sweet wine from these slopes keeps for 35 years when cellars stay below twelve degrees.
""",
        "Market hall",
        """
Cheesemongers occupy the vaulted aisle that was rebuilt by the architect Odalric Venn.
Stallholders pay their rent in advance, and latecomers are moved beside the fish counter.
On feast days brass bands rehearse upstairs, which annoys the notaries in the gallery.
""",
    ),
    "dunmar": (
        "Dunmar",
        "Observatory",
        """
Astronomers measure variable stars with a refractor whose objective is 62 centimetres wide.
Photographic plates are catalogued under `PLATE_INDEX` together with weather notes and exposure.
Moonlit nights are given to students, who practise drawing craters by eye.
""",
        "Library",
        """
Readers may borrow atlases only after depositing a guarantee with the custodian of maps.
The oldest manuscript describes a comet and is kept in a drawer labelled "do not unfold" upstairs.
Dampness ruined the theological shelves when gutters overflowed in 1894 and nobody noticed.
""",
    ),
    "elsted": (
        "Elsted",
        "Waterworks",
        """
Pumps lift spring water to the reservoir whenever the float switch called `level_low` closes.
Chlorine is dosed at 0.35 grams by an apprentice who records each reading in a ledger.
Turbid samples are sent by courier to the chemist, whose laboratory overlooks the gorge.
""",
        "Fire brigade",
        """
Volunteers assemble at the tower when the bell rings three times and then falls silent.
Ladders longer than 14 metres need a licence signed by Marshal Hedda Quist before each drill.
Hoses dry inside the chimney of the disused bakery, where warm air still rises.
""",
    ),
    "farow": (
        "Farow",
        "Pottery",
        """
Clay from the riverbank is washed, sieved and left to ripen under wet sacking for months.
Kilns reach 1,180 degrees at midnight, when apprentices stop feeding pine logs through the hatch.
A cobalt glaze known as "thunder blue" hides small cracks and is forbidden on cooking vessels.
""",
        "Apprentices",
        """
Beginners turn egg cups until the master accepts twelve in a row without correcting their rims.
Wages are paid on Saturdays through the guild account `GUILD_LEDGER` after fines are subtracted.
Anyone who drops a finished tureen must sing in the courtyard during the midday break.
""",
    ),
    "gostel": (
        "Gostel",
        "Brewery",
        """
Barley malt is roasted over peat smoke, giving the dark ale its bitterness and aroma.
Yeast strain `saccharo.gostel` is refreshed monthly from vials stored in the ice house.
Casks hold 54 gallons and roll down a wooden chute into carts waiting outside.
""",
        "Tavern rules",
        """
Dogs sleep beneath the benches, but geese are expelled by order of the licensee Berta Flood.
Debts written on the slate above the hearth expire when the chalk can no longer be read.
Musicians drink free provided that they know at least three verses of "The Drowned Miller" by heart.
""",
    ),
    "hembury": (
        "Hembury",
        "Quarry",
        """
Slate is split by hand along its grain, using chisels forged in the smithy near the incline.
Blasting is announced by a horn and must end before 16:30 so that sheep can be driven home.
Rejected slabs pave the footpath towards Corvin and become slippery during thaw.
""",
        "Rope bridge",
        """
Muleteers cross one at a time because the anchor bolts were rated for 900 kilograms in total.
Frayed strands are replaced each spring by sailors, who splice hemp faster than the villagers.
A toll is collected by the widow Ansa Morl, whose hut contains the only barometer in the valley.
""",
    ),
}


def document(name: str) -> str:
    """A Markdown file about a town that is not there."""
    title, first, one, second, two = _DOCUMENTS[name]
    return f"# {title}\n\n## {first}\n{one}\n## {second}\n{two}"


def corpus() -> dict[str, str]:
    """Eight documents of two sections."""
    return {f"towns/{name}.md": document(name) for name in _DOCUMENTS}


@dataclass(frozen=True)
class Row:
    path: str
    n_passages: int
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class About:
    folder: str
    documents: int
    passages: int
    embedding: str = "words"
    embedding_model: str = ""
    chunk_tokens: int = 200
    overlap: int = 40


@dataclass
class WordIndex:
    """Sections as passages; a search counts words in common, weighted as `mode` says."""

    texts: dict[str, str]
    first: int = 0
    searched: list[tuple[str, int, str]] = field(default_factory=list)
    revision: str = "r1"

    def __post_init__(self) -> None:
        self._all: dict[str, list[Passage]] = {}
        number = self.first
        for path in sorted(self.texts):
            mine = []
            for part in re.split(r"(?m)^(?=## )", self.texts[path])[1:] or [self.texts[path]]:
                heading, _, body = part.partition("\n")
                title = re.search(r"(?m)^# (.*)", self.texts[path])
                mine.append(Passage(
                    number, path, title[1] if title else path, heading.removeprefix("## ").strip(),
                    None, self.texts[path].index(part), self.texts[path].index(part) + len(part),
                    len(body.split()), body.strip(),
                ))  # fmt: skip
                number += 1
            self._all[path] = mine

    def __enter__(self) -> WordIndex:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def warm(self) -> None:
        pass

    def about(self) -> About:
        return About("/home/somebody/towns", len(self.texts), len(self.everything()))

    def documents(self) -> list[Row]:
        return [Row(path, len(self._all[path])) for path in self.texts]

    def passages_of(self, document: str) -> list[Passage]:
        return self._all[document]

    def everything(self) -> list[Passage]:
        return [p for mine in self._all.values() for p in mine]

    def passages(self, ids: Sequence[int]) -> list[Passage]:
        known = {p.id: p for p in self.everything()}
        return [known[i] for i in ids if i in known]

    def search(self, query: str, k: int = 10, mode: str = "hybrid") -> list[Hit]:
        self.searched.append((query, k, mode))
        wanted = set(pieces(query))
        if mode == "dense":  # a poor one
            wanted = {w for w in wanted if len(w) > 8}
        scored = [(len(wanted & set(pieces(f"{p.title} {p.heading} {p.text}"))), p)
                  for p in self.everything()]  # fmt: skip
        scored.sort(key=lambda pair: (-pair[0], pair[1].id))
        return [Hit(p, float(n)) for n, p in scored[:k]]


def answer_of(
    index: WordIndex, question: str, text: str, ids: tuple[int, ...], extra: str = ""
) -> Answer:
    """An answer over these passages, its citations checked as rag/citations.py does."""
    by_id = {p.id: p for p in index.everything()}
    sources = tuple(
        Source(n, p.document, p.title, p.heading, None, p.start, p.end, p.tokens, p.text + extra,
               (p.id,))
        for n, p in enumerate((by_id[i] for i in ids), 1)
    )  # fmt: skip
    found = tuple(
        Citation(int(m[1]), 1 <= int(m[1]) <= len(sources), None, m.start(), m.end())
        for m in re.finditer(r"\[(\d+)\]", text)
    )
    return Answer(question, text, sources, found, Packed(sources, len(ids), len(ids), 9, 99),
                  Usage(9, 0, len(text.split())), Timings(0.0, 0.0, 0.1, 0.2, 0.1),
                  finish="stop")  # fmt: skip


@dataclass
class Asker:
    """`rag.ask.ask` as these tests need it: what each server says, and when it dies."""

    say: Callable[[str, str], str]  # setting, question -> text
    dies: dict[str, int] = field(default_factory=dict)  # after so many answers
    extra: dict[str, str] = field(default_factory=dict)  # other packed text
    asked: list[tuple[str, str, Options]] = field(default_factory=list)

    def __call__(
        self, index: WordIndex, question: str, server: Server, options: Options, on_event: object
    ) -> Answer:
        n = sum(setting == server.setting for setting, _, _ in self.asked)
        if n >= self.dies.get(server.setting, 10**9):
            raise NybbleError("the server is gone", seen=server.url)
        self.asked.append((server.setting, question, options))
        text = self.say(server.setting, question)
        return answer_of(index, question, text, options.passages,
                         self.extra.get(server.setting, ""))  # fmt: skip


@dataclass
class Started:
    """Lanes whose servers are counted."""

    starts: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    refuses: tuple[str, ...] = ()

    def lane(self, setting: str, mark: str = "", model: str = "sha-a") -> Lane:
        @contextmanager
        def serve() -> Iterator[Server]:
            if setting in self.refuses:
                raise NybbleError("it does not start", seen=setting)
            self.starts.append(f"{setting} {mark}".rstrip())
            yield Server("http://127.0.0.1:1", setting=f"{setting} {mark}".rstrip())
            self.ends.append(setting)

        return Lane(setting, setting in ("f16/f16", "bf16/bf16"), f"{model}.gguf", model,
                    "double 1", serve, mark)  # fmt: skip
