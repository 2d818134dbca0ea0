"""The texts of LongChat's line retrieval, and words to name lines by.

Source of the texts: longeval/ of github.com/DachengLi1/LongChat (Apache-2.0). The words are our own list, because the
published tests drew theirs from a package.
"""

HEAD = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a "
    "'<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its "
    "corresponding <REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding "
    "<REGISTER_CONTENT> of a certain line index. Now the record start:\n\n"
)
LINE = "line {name}: REGISTER_CONTENT is <{value}>\n"
QUESTION = "\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {name}? I need the number."
# What follows the question: nothing, as published, or the start of the answer for models that only continue a text.
ENDINGS = {"plain": "", "answer": " The <REGISTER_CONTENT> in line {name} is <"}
MAX_VALUE = 50_000

# Separated by white space; no word stands in both.
ADJECTIVES = """
able acid aged airy amber ample arid avid bald bare basic bitter black blank bleak blue blunt bold brave brief bright
brisk broad bronze brown busy calm candid careful cheap chief chilly civil clean clear clever close cloudy cold cosy
crisp cruel curly damp dark dear deep dense dim dizzy double dry dull dusty eager early easy elder empty equal exact
faint fair fancy fast fatal few final fine firm flat fluffy foggy fond frail frank free fresh full funny gentle giant
glad gloomy golden good grand grave great green grey grim happy hard harsh heavy hollow honest huge humble hungry icy
ideal idle jolly keen kind large last late lazy level light little lively local lone long loud low loyal lucky
"""
NOUNS = """
acorn actor anchor angle apple arch arrow aunt badge baker balloon banjo barn basket beach bear bell bench berry bird
blanket boat bolt book boot bottle bowl branch bread brick bridge broom brush bucket bus button cabin cake camel
candle canoe carpet castle cat cave chair cherry chest circle cliff clock cloud coat coin comet cook coral corn cotton
cradle crane crayon crow crown cup curtain daisy deer desk dish dog doll door dragon drawer drum duck eagle ear egg
elbow engine fan farm feather fence ferry field finger fish flag flame flute fog forest fork fox frog gate ghost glove
goat grape guitar hammer hat hill honey horse house island jacket jar judge kettle key king kite knee ladder lake lamp
leaf
"""
