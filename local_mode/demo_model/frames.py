"""What stands around a plot: titles, openings, introductions, endings, and the small words that fill slots."""

OPENINGS = (
    "Once upon a time, there was a {look} named {H} who lived {home}.",
    "Once upon a time, a {look} named {H} lived {home} in the valley of Willowbrook.",
    "Once upon a time, in the valley of Willowbrook, there lived a {look} called {H}.",
    "One {weather} morning, {H} the {kind} woke up early {home}.",
    "There was once a {look} named {H}, and everyone in Willowbrook knew {him}.",
    "Long ago, when the river was still young, a {look} named {H} came to Willowbrook.",
    "{H} was a {look} who lived {home}.",
    "In the valley of Willowbrook, {home}, lived {H} the {kind}.",
    "A {look} named {H} lived {home}, not far from the river.",
    "It was a cold day, and {H} the {kind} sat alone {home}.",
    "After the rain, {H} the {kind} opened the door and looked at the sky.",
    "In the evening, {H} the {kind} often sat {home} and looked at the stars.",
    "The {kind} who lives {home} is called {H}.",
    "There was a time when {H} the {kind} was still very young.",
)

INTRODUCTIONS = (
    "{He} was a {job}, and {his} best friend was {F} the {f_kind}.",
    "{H} loved {food} more than anything else, and {he} always shared some with {F} the {f_kind}.",
    "Every day {he} worked as a {job}, and every evening {he} ate {food} with {F} the {f_kind}.",
    "{He} was the {job} of the valley, and {he} was very proud of it.",
    "{He} liked {food}, long walks and quiet evenings with {F} the {f_kind}.",
)

ENDINGS = (
    "And so {H} learned that friends make every day brighter.",
    "From that day on, {H} and {F} were always there for each other.",
    "That night, {H} fell asleep with a smile.",
    "And if you come to Willowbrook, {H} will tell you the story {him}self.",
    "They lived happily ever after.",
    "And everyone in Willowbrook still talks about it today.",
    "And {H} was never afraid again.",
    "The end.",
)

TITLES = {
    "lost": "The Lost {Item}",
    "storm": "The Night of the Storm",
    "contest": "The Golden Spoon",
    "raft": "The Brave Raft",
    "bell": "The Silent Bell",
    "kite": "The Runaway Kite",
    "birthday": "The Birthday of {F}",
    "newcomer": "A New Friend",
    "map": "The Old Map",
}

WEATHERS = ("sunny", "rainy", "windy", "cold", "foggy", "warm", "snowy", "bright")
ITEMS = (
    "silver key",
    "red hat",
    "golden ring",
    "blue scarf",
    "wooden spoon",
    "music box",
    "little lantern",
    "brass compass",
    "green umbrella",
    "glass marble",
    "left boot",
    "picture book",
)
NUMBERS = ("three", "seven", "twelve", "five", "ten", "four", "twenty", "nine", "six", "eight")
