"""Words of questions: how text is cut into them, and what a user may write in their place."""

from __future__ import annotations

import html
import re

_PIECE = re.compile(r"[^\W_]+")
_FENCE = re.compile(r"```.*?```|~~~.*?~~~", re.S)
_LINK = re.compile(r"!?\[([^\]\n]*)\]\([^)\n]*\)")
_EMPHASIS = re.compile(r"(?<!\w)(\*{1,3})(?=\S)([^*\n]*\S)\1(?!\w)")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)])\s+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'“`(]*[^\W\d_a-zß-ÿ])")
_LEAST, _MOST = 8, 45  # words of a sentence that a question is made from

# Words that carry no subject: dropped first, never searched for.
STOP = frozenset(
    "a about above after again all also although an and any are as at be because been before "
    "being below between both but by can cannot could did do does doing down during each "
    "either else every few for from further had has have having here how however i if in into "
    "is it its itself just let may might more most must no nor not now of off on once one "
    "only onto or other our out over own per rather same shall she should so some still such "
    "than that the their them then there these they this those through thus to too two under "
    "until up upon us use used uses using very via was we well were what when where whether "
    "which while who whom whose why will with within without would yet you your example note "
    "see e.g i.e etc".split()
)
KEPT = frozenset("no not nor cannot without never only unless".split())  # else it says the contrary

# Pairs that mean much the same in technical prose, both ways, as users and writers differ in their
# words; British and American spelling among them.
_ALIKE = """
error/failure begin/start end/finish remove/delete create/make change/modify display/show
list/enumerate directory/folder argument/parameter return/yield value/quantity string/text
file/document method/function database/db configuration/config application/app repository/repo
memory/RAM maximum/max minimum/min number/count information/info administrator/admin
environment/env temporary/temp statistics/stats specification/spec synchronize/synchronise
allocate/assign permit/allow obtain/get require/need select/choose contain/include large/big
small/little fast/quick verify/check build/compile run/execute stop/halt send/transmit
receive/get previous/earlier following/next initial/first final/last entire/whole similar/like
behavior/behaviour color/colour center/centre initialize/initialise optimize/optimise
serialize/serialise normalize/normalise organize/organise recognize/recognise license/licence
canceled/cancelled labeled/labelled modeling/modelling catalog/catalogue gray/grey
analyze/analyse customize/customise neighbor/neighbour favor/favour honor/honour
authentication/login connection/link message/notification object/instance option/setting
output/result password/passphrase path/location permission/right process/task query/search
request/call response/reply server/host table/relation thread/worker update/refresh user/person
version/release warning/caution window/pane
called/invoked provided/supplied available/accessible specified/given defined/declared
supported/possible implemented/realised ignored/skipped raised/thrown passed/handed added/appended
changed/altered stored/saved written/put loaded/imported removed/dropped replaced/substituted
converted/turned combined/merged compared/matched sorted/ordered opened/accessed closed/shut
installed/deployed enabled/activated disabled/deactivated allowed/permitted required/needed
returned/yielded created/made expected/anticipated found/located shown/printed needed/necessary
useful/helpful important/essential usual/normal simple/easy difficult/hard complete/full
correct/right incorrect/wrong invalid/bad empty/blank single/sole multiple/several various/different
specific/particular additional/extra optional/voluntary default/standard original/source
current/present special/particular common/frequent separate/distinct internal/private
external/outside equal/identical unique/distinct global/shared local/own remote/distant
example/sample purpose/goal reason/cause effect/impact problem/issue feature/capability
behavior/conduct operation/action element/item member/component sequence/series collection/set
section/part description/explanation name/title type/kind length/size position/place
beginning/start limit/bound range/interval difference/gap rule/policy format/layout
interface/API library/package module/unit statement/command expression/formula variable/name
exception/error container/holder character/letter pattern/template platform/system
machine/computer memory/storage network/net client/consumer address/location header/title
password/secret access/reach support/handle provide/offer specify/state define/declare
describe/explain represent/stand convert/transform process/handle perform/do determine/decide
compare/match combine/join replace/swap ignore/skip prevent/avoid ensure/guarantee depend/rely
happen/occur represent/denote support/help control/manage contain/hold attach/connect
automatically/itself directly/immediately usually/normally quickly/fast currently/now
frequently/often entirely/completely exactly/precisely approximately/about
"""
SYNONYMS: dict[str, str] = {}  # the first of several
for _pair in _ALIKE.split():
    _one, _other = _pair.split("/")
    SYNONYMS.setdefault(_one, _other)
    SYNONYMS.setdefault(_other.lower(), _one)


def pieces(text: str) -> list[str]:
    """Runs of letters and digits, in lower case: `os.path_x` is `os`, `path`, `x`."""
    return _PIECE.findall(text.lower())


def content(word: str) -> bool:
    """Whether a piece says something of a subject, as far as its form tells."""
    return len(word) >= 4 and word not in STOP and not word.isdigit()


def variants(word: str) -> list[str]:
    """What a user may write instead, in a fixed order; often nothing.

    A near synonym, the other spelling, or another inflection by English rules, which may be no
    word at all: check that the corpus has it.
    """
    low = word.lower()
    if not low.isalpha() or not low.isascii() or len(low) < 4 or low in STOP:
        return []
    found = [SYNONYMS[low]] if low in SYNONYMS else []
    if low.endswith("ies") and len(low) > 5:
        found.append(low[:-3] + "y")
    elif low.endswith(("sses", "shes", "ches", "xes")):
        found.append(low[:-2])
    elif low.endswith("s") and not low.endswith(("ss", "us", "is")):
        found.append(low[:-1])
    elif low.endswith("y") and low[-2] not in "aeioul":
        found.append(low[:-1] + "ies")
    elif low.endswith("ing") and len(low) > 6:
        found.append(low[:-3] if low[-4] != low[-5] else low[:-4])
    elif low.endswith("ed") and len(low) > 5:
        found.append(low[:-2] + "ing")
    elif low.endswith(("ation", "ition")) and len(low) > 7:
        found.append(low[:-3] + "ing")
    elif not low.endswith(("s", "x", "z", "ch", "sh", "ly")):
        found.append(low + "s")
    return [v for v in dict.fromkeys(found) if v != low]


def plain(text: str) -> str:
    """A title or heading as a user would type it: no entities, anchors or Markdown's marks."""
    return " ".join(re.sub(r"[¶§#*`]", " ", html.unescape(text)).split())


def sentences(text: str) -> list[str]:
    """Whole sentences of prose, without Markdown's marks; code, tables and headings left out.

    Args:
        text: of a passage; its first and last sentence may be cut, and then are not among them.
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", _FENCE.sub("\n\n", text)):
        lines = [x for x in paragraph.splitlines() if x.strip()]
        if not lines or any(x.lstrip().startswith(("#", "|", ">>>", "$ ", "%%")) for x in lines):
            continue
        if all(x.startswith(("    ", "\t")) for x in lines) and not _BULLET.match(lines[0]):
            continue
        joined = " ".join(_BULLET.sub("", x).strip() for x in lines)
        joined = _EMPHASIS.sub(r"\2", _LINK.sub(r"\1", joined)).replace("¶", "")
        found += [s for s in _SENTENCE.split(joined) if _whole(s)]
    return found


def _whole(sentence: str) -> bool:
    words = sentence.split()
    if not _LEAST <= len(words) <= _MOST or sentence[-1] not in ".!?" or "://" in sentence:
        return False
    first = sentence.lstrip("\"'“`(")[:1]
    plain = sum(c.isalpha() or c.isspace() for c in sentence)
    return not first.islower() and plain >= 0.75 * len(sentence)
