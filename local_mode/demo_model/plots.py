"""The plots of the stories as lists of beats, each with several sentences. Slots are filled by stories.py.

H is the hero, F the friend, E the elder who helps; he/him/his belong to H, f_he/f_him/f_his to F.
"""

PLOTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "lost": (
        (
            "One day, {H} could not find {his} {item}.",
            "One {weather} morning, {H} saw that {his} {item} was gone.",
            "But one evening, {his} {item} was missing.",
        ),
        (
            "{He} looked under the bed, behind the door and inside the teapot, but it was not there.",
            "{He} searched the whole house from top to bottom, but {he} found only dust.",
            "{He} looked in every pocket and in every box, but there was no {item}.",
        ),
        (
            'So {he} went to {F} and asked, "Have you seen my {item}?"',
            '"I must ask {F}," said {H}, and {he} ran to {f_him} as fast as {he} could.',
            "{H} felt so sad that {F} heard {him} crying and came to help.",
        ),
        (
            '"No," said {F}, "but I will help you to look for it."',
            '"Do not worry," said {F}. "Two pairs of eyes see more than one."',
            '{F} thought for a while. "Where did you have it last?" {f_he} asked.',
        ),
        (
            "Together they walked to {place} and looked behind every stone.",
            "They followed the footprints all the way to {place}.",
            "They went to {place}, because {H} had been there the day before.",
        ),
        (
            "There, under a pile of leaves, lay the {item}!",
            'And there was {E} the {e_kind}, who was holding the {item}. "Is this yours?" asked {E}.',
            "Something was shining in the grass. It was the {item}!",
        ),
        (
            "{H} laughed and hugged {F}.",
            '"Thank you," said {H}. "You are a true friend."',
            "{H} was so happy that {he} danced all the way home.",
        ),
    ),
    "storm": (
        (
            "One night, a great storm came over the valley.",
            "One evening, dark clouds rolled over Blue Hill.",
            "Then, one day in autumn, the wind began to howl.",
        ),
        (
            "The rain fell so hard that the river rose higher and higher.",
            "The wind shook the trees, and the rain beat on every window.",
            "Thunder rolled, and lightning lit up the whole sky.",
        ),
        (
            '"{F} is all alone at {place}!" cried {H}.',
            "{H} remembered that {F} was still at {place}.",
            "{H} saw a small light at {place}. It was {F}, who needed help.",
        ),
        (
            "{He} took a lantern and a long rope and went out into the dark.",
            "{He} put on {his} boots, lit {his} lantern and opened the door.",
            "Without a word, {he} ran out into the rain.",
        ),
        (
            'On the way, {he} met {E} the {e_kind}. "Hold on to my hand," said {E}, and they went on together.',
            "The bridge was slippery, but {he} walked slowly, step by step.",
            "The path was full of water, so {he} climbed over the rocks instead.",
        ),
        (
            "At last {he} found {F}, who was cold and wet but safe.",
            "When {he} reached {place}, {F} was sitting on a table, high above the water.",
            '"I knew that you would come," said {F} with a smile.',
        ),
        (
            "They went home and drank hot tea until the storm was over.",
            "In the morning the sun came out, and they shared {food} for breakfast.",
            "They sat by the fire and listened to the rain until they fell asleep.",
        ),
    ),
    "contest": (
        (
            "One spring, there was a great cooking contest on the market square.",
            'One day, a notice hung at the clock tower: "Who makes the best {food}?"',
            "Every summer, the town held a contest for the best dish in the valley.",
        ),
        (
            '"I will make {food}," said {H}.',
            "{H} decided to take part with {his} favourite dish, {food}.",
            "{H} wanted to win the golden spoon.",
        ),
        (
            "{He} cooked all day and all night, but something was wrong.",
            "{He} tried it once, {he} tried it twice, but it tasted like wet paper.",
            "{He} worked very hard, but the first try was burnt and the second was too salty.",
        ),
        (
            'Then {F} came by and tasted it. "It needs a little more time," {f_he} said.',
            '"May I help?" asked {F}, and {f_he} brought a basket full of {f_food}.',
            '{E} the {e_kind} came in and smiled. "Good food needs patience," said {E}.',
        ),
        (
            "So they started again, slowly and with great care.",
            "So {H} took a deep breath and began once more.",
            "They stirred, they tasted, and they sang a song while they waited.",
        ),
        (
            "On the day of the contest, {num} dishes stood on the long table.",
            "The judges tasted {num} dishes and shook their heads at most of them.",
            "When the bell rang, everyone in town came to taste.",
        ),
        (
            "When they tasted the dish of {H}, everybody became very quiet, and then they cheered.",
            "{H} did not win the golden spoon, but every plate was empty, and that was even better.",
            "The golden spoon went to {H}, and {he} gave half of the prize to {F}.",
        ),
    ),
    "raft": (
        (
            'One {weather} day, {H} had an idea. "Let us build a raft," {he} said to {F}.',
            "{H} had always wanted to see where the river ends.",
            "One summer, {H} and {F} wanted to travel down the river to the harbour.",
        ),
        (
            "They collected {num} logs and tied them together with rope.",
            "They took {num} planks, a bag of nails and an old bed sheet for a sail.",
            "It took them {num} days to build a boat out of old doors.",
        ),
        (
            '"Will it float?" asked {F}. "Of course," said {H}, but {he} was not so sure.',
            '{E} the {e_kind} looked at it and said, "It needs a stronger rope." But they did not listen.',
            "They painted it blue and called it the Brave Duck.",
        ),
        (
            "At first the water was calm, and they waved to everyone on the stone bridge.",
            "The river carried them past {place}, and the birds flew beside them.",
            "They pushed it into the water, and it really did float.",
        ),
        (
            "Suddenly a rope broke, and the raft began to fall apart.",
            "But near {place} the water became wild, and the raft turned round and round.",
            "Then the raft hit a rock, and cold water came in from all sides.",
        ),
        (
            '"Hold on!" shouted {H}, and {he} tied the logs together with {his} own scarf.',
            "{F} threw a line to the shore, and {E} the {e_kind} pulled them in.",
            "They paddled with their hands until they reached the sand.",
        ),
        (
            "They were wet and tired, but they had never laughed so much.",
            '"Next time we will use a stronger rope," said {F}, and they both laughed.',
            "In the evening they sat at the harbour and watched the big ships go by.",
        ),
    ),
    "bell": (
        (
            "One morning, the bell of the clock tower did not ring.",
            "One day, the great bell was silent.",
            "It happened on a {weather} Monday: the clock stopped, and nobody knew what time it was.",
        ),
        (
            "The baker burned the bread, the school began too late, and the ferry left without anyone.",
            "Nobody came to work on time, and the whole town was in a muddle.",
            'Everyone ran about and asked, "What time is it?"',
        ),
        (
            '{H} said, "Somebody has to climb up and look."',
            '"I will go," said {H}, although {he} was afraid.',
            "{H} and {F} looked at each other and began to climb the 99 steps.",
        ),
        (
            "At the top it was dark and dusty, and something was moving between the wheels.",
            "Up there, behind the biggest wheel, {he} heard a tiny sound.",
            "They opened the little door, and {num} bats flew out.",
        ),
        (
            "It was a bird that had built its nest right inside the bell.",
            "{H} found a {item} that was stuck between two wheels.",
            "A long piece of string was wrapped around the hammer of the bell.",
        ),
        (
            "Very carefully, {H} and {F} carried it to a safe place.",
            "{F} held the lantern while {H} worked with steady hands.",
            "{E} the {e_kind} came with a bag of tools, and together they cleaned every wheel.",
        ),
        (
            "Then the bell rang loud and clear, and the whole town cheered.",
            "At noon the bell rang twelve times, and everyone clapped.",
            "Since that day, {H} has a small key to the clock tower.",
        ),
    ),
    "kite": (
        (
            "In autumn, {H} and {F} made a kite out of red paper.",
            "One windy day, {H} got a beautiful kite from {F}.",
            "{H} had a yellow kite with a tail of {num} ribbons.",
        ),
        (
            "They ran across the green meadow, and the kite rose into the sky.",
            "The wind lifted it higher than the clock tower.",
            "It flew over the trees like a bird.",
        ),
        (
            "But then the string broke, and the kite flew away.",
            "But a strong wind came and pulled the string out of {his} hand.",
            "Suddenly the kite dropped and landed on the roof of {place}.",
        ),
        (
            '"My kite!" cried {H}, and {his} eyes filled with tears.',
            "{H} ran after it until {he} could run no more.",
            "{H} jumped and jumped, but {he} could not reach it.",
        ),
        (
            '"Wait here," said {F}. "I have an idea."',
            "{E} the {e_kind} saw it and brought a long ladder.",
            '"We will find it," said {F}, and they walked to {place}.',
        ),
        (
            "{F} climbed up carefully and brought the kite back with only a small hole.",
            "There it was, high in a tree, and a family of birds was looking at it.",
            "They called all their friends, and together they made a tower of {num} chairs.",
        ),
        (
            "They mended it with paper and glue, and it flew better than before.",
            '"A kite can be mended," said {F}, "and so can a sad day."',
            "From then on, they always flew the kite together.",
        ),
    ),
    "birthday": (
        (
            "It was the birthday of {F}, and {H} had no present.",
            "One day, {H} remembered that tomorrow was the birthday of {F}.",
            "{F} was going to be {num} years old, and {H} wanted to make {f_him} happy.",
        ),
        (
            "{He} had only {num} coins in {his} pocket.",
            "All the shops were closed, because it was Sunday.",
            "{He} thought and thought, but {he} had no idea.",
        ),
        (
            "{He} went to {place} to think.",
            "{He} asked {E} the {e_kind} what to do.",
            "{He} walked up and down the market square and looked at every stall.",
        ),
        (
            '"The best present is one that you make yourself," said {E} the {e_kind}.',
            "There {he} saw a flower that was as blue as the sky.",
            "Then {he} remembered that {F} loved {f_food}.",
        ),
        (
            "So {he} went home and worked until midnight.",
            "So {he} made a big plate of {f_food} all by {him}self.",
            "So {he} painted a picture of the day when they first met.",
        ),
        (
            "In the morning {he} knocked at the door and sang a song.",
            'When {F} opened the door, all the friends shouted, "Happy birthday!"',
            "{F} opened the box very slowly, and {f_his} eyes became wide.",
        ),
        (
            '"This is the best present of all," said {F}, and they ate cake until the stars came out.',
            "{F} was so happy that {f_he} could not speak.",
            "They danced until the lamp of the lighthouse was lit.",
        ),
    ),
    "newcomer": (
        (
            "One day, a stranger came to the valley. It was {F} the {f_kind}.",
            "One {weather} afternoon, {F} the {f_kind} arrived with one small bag.",
            "Before they were friends, {F} the {f_kind} was new in Willowbrook and knew nobody.",
        ),
        (
            "{F} sat alone on the stone bridge and did not say a word.",
            "Nobody spoke to {f_him}, and {f_he} ate {f_his} {f_food} all alone.",
            'Some said, "We do not know who that is," and closed their doors.',
        ),
        (
            "But {H} remembered how it feels to be alone.",
            "{H} saw this, and {he} did not like it.",
            "{H} was shy too, but {he} was also curious.",
        ),
        (
            "So {he} took some {food} and walked over to {F}.",
            '"Hello," said {H}. "Would you like some {food}?"',
            "{He} sat down beside {F}, and for a while they only looked at the river.",
        ),
        (
            '{F} smiled for the first time. "I am a {f_job}," {f_he} said. "Do you need one here?"',
            "{F} told {him} about the long way over the mountains.",
            "They talked about {food}, about {f_food} and about the stars.",
        ),
        (
            "The next day, {H} showed {f_him} the whole valley, from {place} to the harbour.",
            "The next day, {H} took {f_him} to {place} and told everyone {f_his} name.",
            "Soon everyone saw that the valley had been waiting for a {f_job}.",
        ),
        (
            "From that day on, {H} and {F} were best friends.",
            "A stranger is only a friend whom you have not met yet, {E} the {e_kind} always says.",
            "And {F} never ate alone again.",
        ),
    ),
    "map": (
        (
            "One day, {H} found an old map between two books in the glass library.",
            "While {he} was cleaning, {H} found a map behind the stove.",
            '{E} the {e_kind} gave {H} an old map. "I am too old for this," said {E}.',
        ),
        (
            "There was a red cross on it, close to {place}.",
            "On the map was a line of dots that led to {place}.",
            '"Go {num} steps north from {place}," said the map.',
        ),
        (
            '{H} ran to {F}. "Let us find the treasure!" {he} said.',
            '"It must be a treasure," whispered {F}, and {f_his} eyes were shining.',
            "{F} did not believe in treasures, but {f_he} came along.",
        ),
        (
            "They walked for {num} hours, through the wood and over the hill.",
            "They took a lantern, a spade and a bag of {food}.",
            "They left before sunrise, when the fog was still on the river.",
        ),
        (
            "There they dug a deep hole, and the spade hit something hard.",
            "Under an old tree they found a small box of iron.",
            "Behind a stone there was a door, and behind the door there was a chest.",
        ),
        (
            "Inside there was no gold, but {num} letters from friends who had lived there long ago.",
            'In the box lay a {item} and a note: "Share what you find."',
            "It was full of seeds, and every bag had the name of a flower on it.",
        ),
        (
            "They brought it to {E} the {e_kind}, who told them the whole story.",
            "They planted a garden at {place}, and it still blooms every spring.",
            '"This is better than gold," said {H}, and {F} agreed.',
        ),
    ),
}
