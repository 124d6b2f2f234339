"""Every word that a shipped model knows; one word is one token."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


BOS, PAD, UNKNOWN, STOP = "<bos>", "<pad>", "<unk>", "."
PUNCTUATION = (STOP, ",", ":", ";")
RELATIONS = ("mother", "boss", "friend", "teacher", "rival", "doctor", "neighbour", "heir")
ENTITIES = _words("""
    Ada Ben Cora Dan Eva Finn Gail Hugo Ida Jack Kate Leo Mia Ned Olga Paul Quinn Rosa Sam Tess
    Uma Vera Walt Xena Yann Zoe Abel Bea Carl Dora Emil Fay Gus Hope Ivan June Karl Lena Max Nora
    Omar Pia Ralf Sara Tom Ulla Vito Wanda Yves Zara
    """)
NUMBERS = tuple(f"{n:02d}" for n in range(100))
PLACES = _words("park shop school station garden office beach market library harbour")
THINGS = _words("book ring drink letter apple ticket lamp coat map basket flute rope")
EVENTS = (
    "war",
    "voyage",
    "siege",
    "trial",
    "drought",
    "reign",
    "strike",
    "feud",
    "harvest",
    "project",
)
ITEMS = _words("""
    anchor arrow bell blade boat bone bottle bowl brick bridge brush button cable candle canvas
    chain chair chest clock cloth coin comb crown cup desk dish door drum fan fence flag fork
    frame gate glass glove hammer hat hook horn jar key knife ladder lens lock mask mill mirror
    nail needle net oar oven pan pen pipe plate plough pot pump quilt rail rake razor reed saddle
    sail saw scale seal shelf shell shield shoe sieve spade spoon stamp stool string sword table
    tent thread tile tool torch tower tray trunk vase wheel whip wire
    """)
GRAMMAR = _words("""
    when and went to the a gave handed passed then after met at found decided give offered had
    while were in walking together it lasted from year until ran began ended list old small quiet
    big sun rain wind river bird dog cat child moon slept fell sang rose came stood waited shone
    The When Then After While Once
    """)
_SPECIAL = (PAD, BOS, UNKNOWN)
WORDS = tuple(
    dict.fromkeys(
        (
            *_SPECIAL,
            *PUNCTUATION,
            *RELATIONS,
            *ENTITIES,
            *NUMBERS,
            *PLACES,
            *THINGS,
            *EVENTS,
            *ITEMS,
            *GRAMMAR,
        )
    )
)
