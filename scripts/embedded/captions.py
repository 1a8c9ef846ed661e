"""What is said about a picture: names made fit for prompts, articles, varied wording, colours and places.

Words come from the Unicode names (see data.py), the older name in UnicodeData.txt, the group a sign belongs
to, and a short table of everyday words. Training needs variety so that the model listens to the words and
not to one template.
"""

from __future__ import annotations

import random
import re

from .data import Emoji
from .pictures import Object, Picture

EVERYDAY = {
    "automobile": "car",
    "bicycle": "bike",
    "airplane": "plane",
    "motor scooter": "scooter",
    "locomotive": "steam train",
    "sailboat": "sailing boat",
    "hot beverage": "cup of coffee",
    "doughnut": "donut",
    "hamburger": "burger",
    "french fries": "fries",
    "soft ice cream": "ice cream",
    "birthday cake": "cake",
    "wrapped gift": "present",
    "red heart": "heart",
    "deciduous tree": "tree",
    "evergreen tree": "fir tree",
    "light bulb": "lamp",
    "laptop": "computer",
    "mobile phone": "phone",
    "television": "tv",
    "soccer ball": "football",
    "top hat": "hat",
    "running shoe": "shoe",
    "ewe": "sheep",
    "t-rex": "dinosaur",
    "rabbit": "bunny",
    "pile of poo": "poop",
    "face with tears of joy": "laughing face",
    "loudly crying face": "crying face",
    "smiling face with sunglasses": "cool face",
    "smiling face with heart-eyes": "face in love",
    "white medium star": "star",
}

NOT_COUNTED = frozenset(
    {"bread", "rice", "popcorn", "bacon", "sushi", "honey", "fire", "fog", "wind face", "money"}
)

PREFIXES = ("", "", "", "an emoji of ", "a picture of ", "emoji, ")


def phrase(name: str) -> str:
    """A Unicode name as a noun phrase: lower case, plain quotes, "flag: Kenya" as "flag of kenya"."""
    text = name.lower().replace("’", "'").replace("“", "").replace("”", "").replace("⊛ ", "")
    head, colon, tail = text.partition(": ")
    if colon:
        joint = {"flag": " of ", "keycap": " "}.get(head, " with ")
        text = head + joint + tail
    return re.sub(r"\s+", " ", text.replace(",", "")).strip()


def with_article(text: str) -> str:
    """ "red apple" -> "a red apple"; plurals and substances take none."""
    last = text.rsplit(" ", 1)[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is"))
    if plural or text in NOT_COUNTED or last in NOT_COUNTED or text.startswith(("a ", "an ")):
        return text
    return f"an {text}" if text[0] in "aeiou" and not text.startswith(("uni", "eu", "one ")) else f"a {text}"


def words_for(emoji: Emoji) -> list[str]:
    """All noun phrases for this emoji, the best first."""
    names = [phrase(emoji.name)]
    if names[0] in EVERYDAY:
        names.append(EVERYDAY[names[0]])
    if emoji.alias is not None:
        names.append(phrase(emoji.alias))
    return list(dict.fromkeys(names))


def keyword(emoji: Emoji) -> str:
    """What kind of thing it is: "animal mammal" for a cat, "food fruit" for an apple."""
    return emoji.subgroup.replace("-", " ")


def plain_caption(emoji: Emoji) -> str:
    """The prompt a person would write, without any variation: "a red apple"."""
    return with_article(phrase(emoji.name))


def background_clause(background: str, rng: random.Random) -> str:
    if background == "white" and rng.random() < 0.85:
        return ""  # white is what nobody needs to say
    if rng.random() < 0.3:
        return f", {background} background"
    return f" on {with_article(background)} background"


def noun(emoji: Emoji, rng: random.Random, *, article: bool) -> str:
    names = words_for(emoji)
    name = names[0] if rng.random() < 0.75 else rng.choice(names)
    return with_article(name) if article else name


def single_caption(emoji: Emoji, rng: random.Random) -> str:
    text = noun(emoji, rng, article=rng.random() < 0.7)
    text = rng.choice(PREFIXES) + text
    return f"{text}, {keyword(emoji)}" if rng.random() < 0.08 else text


def pair_caption(picture: Picture, emoji: tuple[Emoji, ...], rng: random.Random) -> str:
    """Two objects, named in either order: "a cat left of a car", "a car below a cat", "a cat and a car"."""
    article = rng.random() < 0.8
    a, b = (noun(emoji[o.index], rng, article=article) for o in picture.objects)
    if picture.objects[0].place == "above":
        return rng.choice((f"{a} above {b}", f"{a} on top of {b}", f"{b} below {a}", f"{b} under {a}"))
    return rng.choice(
        (
            f"{a} left of {b}",
            f"{a} to the left of {b}",
            f"{b} right of {a}",
            f"{b} to the right of {a}",
            f"{a} and {b}",
        )
    )


def plural(text: str) -> str:
    """ "red apple" -> "red apples", "cherry blossom" -> "cherry blossoms"; what looks like a plural stays."""
    if text.endswith("s") and not text.endswith(("ss", "us")):
        return text
    if text.endswith("y") and text[-2:-1] not in "aeiou":
        return text[:-1] + "ies"
    return text + ("es" if text.endswith(("ss", "us", "x", "ch", "sh")) else "s")


def single_kind(picture: Picture, emoji: Emoji, rng: random.Random) -> str:
    """One object that is small, there several times, or drawn in another style."""
    bare = noun(emoji, rng, article=False)
    if picture.count > 1:
        return f"{ {2: 'two', 3: 'three'}[picture.count] } {plural(bare)}"
    if picture.small:
        return with_article(f"{rng.choice(('small', 'tiny', 'little'))} {bare}")
    if picture.style == "grey":
        return rng.choice((f"a black and white {bare}", f"{with_article(bare)} in black and white"))
    return rng.choice((f"an outline of {with_article(bare)}", f"a line drawing of {with_article(bare)}"))


def caption(picture: Picture, emoji: tuple[Emoji, ...], rng: random.Random) -> str:
    """One way to say what is in the picture."""
    if picture.kind == "pair":
        text = pair_caption(picture, emoji, rng)
    elif picture.kind in ("white", "colour"):
        text = single_caption(emoji[picture.objects[0].index], rng)
    else:
        text = single_kind(picture, emoji[picture.objects[0].index], rng)
    return text + background_clause(picture.background, rng)


def every_caption(emoji: tuple[Emoji, ...], colours: tuple[str, ...], seed: int = 0) -> list[str]:
    """Captions that together hold every word training can use; the vocabulary is collected from them."""
    rng = random.Random(seed)
    texts = [with_article(name) for e in emoji for name in words_for(e)]
    texts += [name for e in emoji for name in words_for(e)]
    texts += [plural(name) for e in emoji for name in words_for(e)]
    texts += [f"{phrase(e.name)}, {keyword(e)}" for e in emoji]
    texts += [f"a {c} background, {c} background" for c in colours]
    texts += [prefix + phrase(emoji[0].name) for prefix in PREFIXES]
    one = (Object(0),)
    kinds = [
        Picture((Object(0, "left"), Object(1, "right")), colours[0]),
        Picture((Object(0, "above"), Object(1, "below")), colours[0]),
        Picture(one, small=True),
        *(Picture(one, count=n) for n in (2, 3)),
        *(Picture(one, style=style) for style in ("grey", "outline")),
    ]
    return texts + [caption(picture, emoji, rng) for picture in kinds for _ in range(200)]
