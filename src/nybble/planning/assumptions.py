"""Every number that a plan assumes, with its source, in one place.

A user's own value replaces any of them; results carry what was used.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.planning.interval import Interval


@dataclass(frozen=True)
class Assumption:
    """A number that an estimate rests on.

    Attributes:
        name: what it is.
        value: the number, or the interval it lies in.
        unit: its unit; "" for a share or a count.
        source: where it was read and when; "assumed" and why, where nobody published it; "given"
            where the user gave it.
    """

    name: str
    value: float | Interval | str
    unit: str
    source: str

    @property
    def given(self) -> bool:
        """Whether the user gave it."""
        return self.source == "given"

    @property
    def assumed(self) -> bool:
        """Whether nobody published it."""
        return self.source.startswith("assumed")


_POINTS = "bench/results/plan_throughput.json: what published runs reach"

# Throughput. The intervals were set on the points of bench/published_speed.csv that are marked
# "set"; the bench says how many of the others they hold.
DECODE_SHARE = Assumption(
    "share of the memory bandwidth that decoding reaches",
    Interval(0.55, 0.92),
    "",
    f"{_POINTS}; pytorch/ao roofline_utils.py uses 0.92 for plain copies on an H100",
)
STEP_OVERHEAD = Assumption(
    "time that each layer adds to a step whatever it reads (kernel launches, reductions)",
    Interval(0.0, 80e-6),
    "s a layer",
    _POINTS,
)
PREFILL_SHARE = Assumption(
    "share of the dense FP16 rate that prefill reaches",
    Interval(0.20, 0.95),
    "",
    f"{_POINTS}; pytorch/ao roofline_utils.py uses 0.78 for large products on an H100",
)
EXPERTS_SHARED = Assumption(
    "a batch of n tokens meets as many experts as n to the power of this, drawn independently",
    Interval(0.7, 1.0),
    "",
    "gpt-oss and Qwen3-30B-A3B on DGX Spark: as 5 to 6 of 8 tokens and 10 to 23 of 32 "
    "(ggml-org/llama.cpp benches/dgx-spark.md); 1 is no topic in common",
)
INT8_SHARE = Assumption(
    "share of the dense INT8 rate that prefill reaches at most where quantized weights are "
    "multiplied in INT8 (llama.cpp's MMQ)",
    0.35,
    "",
    _POINTS,
)
TENSOR_SHARE = Assumption(
    "share of n times one card's speed that n cards reach with tensor parallelism",
    Interval(0.45, 0.95),
    "",
    "Gemma 4 31B on 2 x RTX 5060 Ti: 0.86 (antonkrug.eu, 2026-06-06); on 3 x RTX 3090: 0.5 "
    "(ik_llama.cpp issue 1607); without NVLink four cards can be slower than two "
    "(kubesimplify/website pull request 267, 2026-08-27)",
)
CACHE_PENALTY = Assumption(
    "share of the speed of a 16-bit cache that a quantized one may cost, up to 32K tokens",
    Interval(0.0, 0.17),
    "",
    "v-code01/kvquant: 13 to 17 % more ms a token; vLLM pull request 49077: FP8 costs 0 to 15 % "
    "(reference/gemma4.md section 4)",
)
CACHE_PENALTY_LONG = Assumption(
    "the same past 32K tokens",
    Interval(0.0, 0.35),
    "",
    "DGX Spark, q4_0: 18 to 35 % (reference/gemma4.md section 4)",
)
CACHE_PENALTY_CPU = Assumption(
    "the same for prefill on a CPU",
    Interval(0.0, 0.75),
    "",
    "Gemma 3 270M in llama.cpp on two AVX2 cores, behind 1,024 tokens: q8_0 33 %, q4_0 67 % "
    "(docs/log.md, 2026-11-28); reference/feasibility.md 2c: q4_0 up to 70 %",
)
LONG = 32_768  # tokens from which CACHE_PENALTY_LONG counts
MICRO_BATCH = Assumption(
    "tokens of one micro-batch of the prefill", 512, "tokens", "llama.cpp's default -ub"
)
REPEAT = Assumption(
    "how far a second run of the same measurement lies from the first",
    0.05,
    "",
    "assumed: five times the 1 % that llama-bench prints as its deviation",
)

# Cost of owning.
ELECTRICITY = Assumption(
    "electricity",
    Interval(0.146, 0.1872),
    "USD/kWh",
    "US averages, commercial to residential: EIA Electric Power Monthly table 5.6.A as in "
    "energypricestoday.com, 2026-04-26",
)
PUE = Assumption(
    "energy of the room for each kWh of the machine (PUE)",
    Interval(1.0, 1.54),
    "",
    "1 is a room without cooling of its own; 1.54 is the mean of Uptime Institute's survey 2025 "
    "(thefreesheet.com, 2026-01-19)",
)
LIFE = Assumption(
    "years that hardware is used",
    3.0,
    "years",
    "the three years of cliffcenter.com/research/amd-inference-economics, 2026-05-18",
)
INTEREST = Assumption("interest on the purchase", 0.0, "a year", "assumed: paid from own money")
RESALE = Assumption("share of the price got back at the end", 0.0, "", "assumed: nothing")
HOST_PRICE = Assumption(
    "the machine around the cards, for each card",
    Interval(1000.0, 3125.0),
    "USD a card",
    "high: 25,000 USD for a server of 8 cards (qudata.ai/en/blog/gpu-in-the-age-of-ai, 2025); "
    "low: assumed, a desktop computer",
)
HOST_POWER = Assumption(
    "the machine around the cards, for each card",
    Interval(50.0, 400.0),
    "W a card",
    "assumed: an idle desktop computer to the fans, CPUs and network of a server",
)
LOAD_POWER = Assumption(
    "share of the cards' power limit that is drawn while they work",
    Interval(0.6, 1.0),
    "",
    "assumed: decoding waits for memory and seldom draws the limit",
)
IDLE_SHARE = Assumption(
    "share of the power limit that a card draws idle, where its own is not known",
    Interval(0.02, 0.18),
    "",
    "the cards of cards.csv with a driver's listing: RTX 3090 2 %, H100 10 %, MI300X 17 %",
)
HOSTING = Assumption("rack, network, staff", 0.0, "USD a month and replica", "assumed: none")
HEADROOM = Assumption(
    "share of a replica's capacity that is planned for, so that queues stay short",
    0.7,
    "",
    "assumed",
)
SERVICE = Assumption(
    "storage, traffic and support on top of the rent",
    0.0,
    "share of the rent",
    "assumed: none; mercatus-ai.com/blog/cloud-gpu-pricing, 2026-05, says to plan 0.3 to 0.5",
)
HOURS_A_MONTH = 365.25 * 24 / 12
DAYS_A_MONTH = 365.25 / 12


@dataclass(frozen=True)
class ApiPrice:
    """What an API asks.

    Attributes:
        name: of the model there.
        usd_in: USD for a million input tokens.
        usd_out: USD for a million output tokens.
        source: where and when it was read.
    """

    name: str
    usd_in: Interval
    usd_out: Interval
    source: str


# Read from stored public pages on 2026-11-24; list prices without discounts.
API_PRICES = {
    "gemma-4-31b": ApiPrice(
        "gemma-4-31b",
        Interval(0.12, 0.14),
        Interval(0.35, 0.40),
        "keeprouter.com, runware.ai, docs.doubleword.ai (realtime), read 2026-11-24",
    ),
    "gemma-4-26b-a4b": ApiPrice(
        "gemma-4-26b-a4b",
        Interval(0.06, 0.06),
        Interval(0.33, 0.33),
        "OpenRouter's page (openrouter.onee.io), read 2026-11-24",
    ),
}
