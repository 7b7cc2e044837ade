"""The invented valley of Willowbrook: who lives there, where, and what is true about it.

Every text of the corpus takes its facts from here, so stories, answers and JSON never contradict each other.
"""

from dataclasses import dataclass

VALLEY = "Willowbrook"


@dataclass(frozen=True, slots=True)
class Character:
    """One inhabitant. `home` fits after "lives in/at"; `food` is plural or a mass noun as written."""

    name: str
    look: str
    kind: str
    he: str
    home: str
    job: str
    food: str
    friend: str
    emoji: str

    @property
    def portrait(self) -> str:
        """Article, look and kind: `a small red fox`, `an old striped badger`."""
        article = "an" if self.look[0] in "aeiou" else "a"
        return f"{article} {self.look} {self.kind}"

    @property
    def him(self) -> str:
        return "him" if self.he == "he" else "her"

    @property
    def his(self) -> str:
        return "his" if self.he == "he" else "her"


@dataclass(frozen=True, slots=True)
class Place:
    """One place of the valley with two facts, each a full sentence."""

    name: str
    where: str
    facts: tuple[str, str]

    @property
    def at_start(self) -> str:
        """The name as it begins a sentence."""
        return self.name[0].upper() + self.name[1:]


CHARACTERS = (
    Character("Milo", "small red", "fox", "he", "in the old mill", "baker", "honey bread", "Tilda", "🦊"),
    Character(
        "Tilda",
        "round brown",
        "hedgehog",
        "she",
        "in the garden shed",
        "gardener",
        "strawberries",
        "Milo",
        "🦔",
    ),
    Character("Zoë", "cheerful", "girl", "she", "above the Café Lune", "painter", "crêpes", "Bruno", "🎨"),
    Character(
        "Bruno",
        "big brown",
        "bear",
        "he",
        "in a cave on Blue Hill",
        "woodcutter",
        "blueberry pie",
        "Zoë",
        "🐻",
    ),
    Character(
        "Pip", "tiny grey", "mouse", "he", "in the clock tower", "clock mender", "yellow cheese", "Ada", "🐭"
    ),
    Character(
        "Ada", "wise white", "owl", "she", "in the glass library", "librarian", "almond cake", "Pip", "🦉"
    ),
    Character(
        "Otto", "quick young", "otter", "he", "in the boathouse", "ferryman", "fish soup", "Nell", "🦦"
    ),
    Character(
        "Nell",
        "proud grey",
        "goose",
        "she",
        "beside the mill pond",
        "letter carrier",
        "oat biscuits",
        "Otto",
        "✉️",
    ),
    Character("Mei", "kind", "girl", "she", "in the tea house", "teacher", "dumplings", "José", "🍵"),
    Character("José", "brave", "boy", "he", "in the red cottage", "boat builder", "orange jam", "Mei", "⛵"),
    Character(
        "Rosa", "shy white", "rabbit", "she", "under the great oak", "farmer", "carrot soup", "Finn", "🐰"
    ),
    Character("Finn", "merry green", "frog", "he", "in the lily pond", "musician", "plum tart", "Rosa", "🐸"),
    Character(
        "Hugo",
        "old striped",
        "badger",
        "he",
        "in the lighthouse",
        "lighthouse keeper",
        "potato stew",
        "Ines",
        "🦡",
    ),
    Character(
        "Ines", "clever black", "cat", "she", "in the harbour inn", "cook", "grilled sardines", "Hugo", "🐱"
    ),
    Character(
        "Sami", "nimble red", "squirrel", "he", "in the tall pine", "kite maker", "hazelnuts", "Lou", "🐿️"
    ),
    Character(
        "Lou", "gentle white", "lamb", "she", "in the green meadow", "weaver", "clover salad", "Sami", "🐑"
    ),
    Character(
        "Karl",
        "noisy black",
        "crow",
        "he",
        "on the school roof",
        "news reader",
        "sweet cherries",
        "Wilma",
        "🐦",
    ),
    Character(
        "Wilma",
        "slow old",
        "tortoise",
        "she",
        "beside the stone bridge",
        "doctor",
        "fresh lettuce",
        "Karl",
        "🐢",
    ),
    Character(
        "Tomás",
        "patient grey",
        "donkey",
        "he",
        "in the market barn",
        "carter",
        "yellow apples",
        "Freya",
        "🍎",
    ),
    Character(
        "Freya",
        "lively spotted",
        "dog",
        "she",
        "in the fire station",
        "firefighter",
        "warm pancakes",
        "Tomás",
        "🐶",
    ),
)

BY_NAME = {character.name: character for character in CHARACTERS}

PLACES = (
    Place(
        "the old mill",
        "beside the river",
        ("The old mill has a wheel of oak.", "Milo bakes there every day."),
    ),
    Place(
        "the Café Lune",
        "on the market square",
        ("The Café Lune opens at 8 in the morning.", "It serves crêpes and hot cocoa."),
    ),
    Place(
        "the clock tower",
        "in the middle of the town",
        ("The clock tower has 99 steps.", "Its bell rings every hour."),
    ),
    Place(
        "the glass library",
        "at the edge of the wood",
        ("The glass library holds 3000 books.", "Ada lends them to everyone."),
    ),
    Place(
        "the harbour", "at the end of the river", ("The harbour has 12 boats.", "The ferry leaves at noon.")
    ),
    Place(
        "the lighthouse",
        "on the last rock",
        ("The lighthouse is 40 metres tall.", "Its lamp is lit at sunset."),
    ),
    Place(
        "Blue Hill",
        "in the north of the valley",
        ("Blue Hill is the highest hill.", "Blueberries grow on it in July."),
    ),
    Place(
        "the whispering wood",
        "behind the library",
        ("The whispering wood is full of tall pines.", "Its leaves whisper in the wind."),
    ),
    Place(
        "the market square",
        "next to the clock tower",
        ("The market is held on Saturday.", "There are 20 stalls on the square."),
    ),
    Place(
        "the green meadow",
        "south of the stone bridge",
        ("The green meadow is full of clover.", "Kites fly there in autumn."),
    ),
    Place(
        "the stone bridge", "over the river", ("The stone bridge has three arches.", "It is 200 years old.")
    ),
    Place(
        "the school", "beside the tea house", ("The school has two rooms.", "Mei teaches there from 9 to 2.")
    ),
)

FACTS = (
    ("What is the name of the river?", "The river of Willowbrook is called the Silverling."),
    ("When is the market?", "The market is held on Saturday."),
    ("What time does the Café Lune open?", "The Café Lune opens at 8 in the morning."),
    ("How many steps does the clock tower have?", "The clock tower has 99 steps."),
    ("How many books does the library hold?", "The glass library holds 3000 books."),
    ("How tall is the lighthouse?", "The lighthouse is 40 metres tall."),
    ("How old is the stone bridge?", "The stone bridge is 200 years old."),
    ("When does the ferry leave?", "The ferry leaves at noon."),
    ("How many boats are in the harbour?", "There are 12 boats in the harbour."),
    ("What grows on Blue Hill?", "Blueberries grow on Blue Hill in July."),
    ("When is the lantern festival?", "The lantern festival is on the first night of autumn."),
    ("What is Willowbrook?", "Willowbrook is a small valley with a river, a wood and a harbour."),
)

GREETINGS = (
    ("French", "bonjour"),
    ("Spanish", "¡hola!"),
    ("German", "guten Tag"),
    ("Italian", "ciao"),
    ("Japanese", "こんにちは"),
    ("Chinese", "你好"),
    ("Korean", "안녕하세요"),
    ("Russian", "привет"),
    ("Greek", "γειά σου"),
    ("Portuguese", "olá"),
    ("Polish", "cześć"),
    ("Turkish", "günaydın"),
    ("Swedish", "god dag"),
    ("Hindi", "नमस्ते"),
    ("Arabic", "مرحبا"),
    ("Hebrew", "שלום"),
)

WORDS = (
    ("tea", "お茶", "茶"),
    ("moon", "月", "月亮"),
    ("river", "川", "河"),
    ("mountain", "山", "山"),
    ("cat", "猫", "猫"),
    ("flower", "花", "花"),
    ("rain", "雨", "雨"),
    ("book", "本", "书"),
    ("star", "星", "星星"),
    ("fish", "魚", "鱼"),
)

CAPITALS = (
    ("France", "Paris"),
    ("Germany", "Berlin"),
    ("Spain", "Madrid"),
    ("Italy", "Rome"),
    ("Japan", "Tokyo"),
    ("China", "Beijing"),
    ("England", "London"),
    ("Portugal", "Lisbon"),
    ("Sweden", "Stockholm"),
    ("Norway", "Oslo"),
    ("Poland", "Warsaw"),
    ("Greece", "Athens"),
    ("Austria", "Vienna"),
    ("Egypt", "Cairo"),
    ("Canada", "Ottawa"),
    ("Brazil", "Brasília"),
    ("India", "New Delhi"),
    ("Ireland", "Dublin"),
    ("Switzerland", "Bern"),
    ("Peru", "Lima"),
)
