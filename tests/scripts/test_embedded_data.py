"""Captions and pictures of the embedded model's training data."""

from __future__ import annotations

import random
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import ImageFont, features

from scripts.embedded.captions import (
    caption,
    every_caption,
    phrase,
    plain_caption,
    with_article,
    words_for,
)
from scripts.embedded.data import (
    SIZE,
    STRIKE,
    Emoji,
    Sprites,
    find_font,
    parse_emoji,
    render,
    unicode_names,
)
from scripts.embedded.latents import plan_pictures, proportions
from scripts.embedded.pictures import (
    COLOURS,
    GROUP_WEIGHT,
    Object,
    Painter,
    Picture,
    PictureSource,
    Shares,
    held_out,
    outline,
)
from scripts.embedded.vocabulary import UNKNOWN, VOCABULARY_SIZE, Vocabulary
from scripts.train_embedded import HELD_OUT_COUNT, HELD_OUT_STACKED, group_weight

TEST_FILE = """\
# group: Food & Drink
# subgroup: food-fruit
1F34E                        ; fully-qualified     # \U0001f34e E0.6 red apple
263A                         ; unqualified         # \u263a E0.6 smiling face
# group: People & Body
# subgroup: hand
1F44B 1F3FB                  ; fully-qualified     # \U0001f44b\U0001f3fb E1.0 waving hand: light skin tone
# group: Flags
# subgroup: country-flag
1F1F0 1F1EA                  ; fully-qualified     # \U0001f1f0\U0001f1ea E2.0 flag: Kenya
# group: Travel & Places
# subgroup: transport-ground
1F697                        ; fully-qualified     # \U0001f697 E0.6 automobile
# subgroup: time
1F570 FE0F                   ; fully-qualified     # \U0001f570\ufe0f E0.7 mantelpiece clock
"""

APPLE = Emoji("\U0001f34e", "red apple", "Food & Drink", "food-fruit")
CAR = Emoji("\U0001f697", "automobile", "Travel & Places", "transport-ground")
CLOCK = Emoji("\U0001f570\ufe0f", "mantelpiece clock", "Travel & Places", "time")
EMOJI = (APPLE, CAR, CLOCK)


def squares() -> Sprites:
    """Three opaque sprites, red, green and blue, each with an empty right half."""
    pixels = torch.zeros(3, 4, SIZE, SIZE, dtype=torch.uint8)
    for index in range(3):
        pixels[index, index, :, : SIZE // 2] = 255
        pixels[index, 3, :, : SIZE // 2] = 255
    return Sprites(EMOJI, pixels)


def test_rows_of_emoji_test_txt() -> None:
    """Oracle: a hand-written extract of the file; skin tones and unqualified rows are left out."""
    rows = parse_emoji(TEST_FILE.splitlines(), {"\U0001f570": "mantelpiece clock", "\U0001f697": "motor car"})
    assert [e.name for e in rows] == ["red apple", "flag: Kenya", "automobile", "mantelpiece clock"]
    assert rows[0] == APPLE
    assert [e.alias for e in rows] == [None, None, "motor car", None]


def test_unicode_names_skip_ranges() -> None:
    """Oracle: two lines in the form of UnicodeData.txt."""
    lines = [
        "1F34E;RED APPLE;So;0;ON;;;;;N;;;;;",
        "D800;<Non Private Use High Surrogate, First>;Cs;0;L;;;;;N;;;;;",
    ]
    assert unicode_names(lines) == {"\U0001f34e": "red apple"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("red apple", "a red apple"),
        ("orange book", "an orange book"),
        ("cherries", "cherries"),
        ("octopus", "an octopus"),
        ("unicorn", "a unicorn"),
        ("flag: Kenya", "a flag of kenya"),
        ("man: white hair", "a man with white hair"),
        ("rescue worker’s helmet", "a rescue worker's helmet"),
        ("Japanese “acceptable” button", "a japanese acceptable button"),
    ],
)
def test_names_become_noun_phrases(name: str, expected: str) -> None:
    """Oracle: English, written by hand."""
    assert with_article(phrase(name)) == expected


def test_captions_name_object_colour_and_place() -> None:
    """Oracle: the picture that is described: every wording has its objects, colour and order."""
    for seed in range(200):
        rng = random.Random(seed)
        single = caption(Picture((Object(0),), "blue"), EMOJI, rng)
        assert "red apple" in single and "blue background" in single
        pair = caption(Picture((Object(0, "left"), Object(2, "right"))), EMOJI, rng)
        apple, clock = pair.index("apple"), pair.index("clock")
        if " left of " in pair:
            assert apple < clock
        elif " right of " in pair:
            assert clock < apple
        else:
            assert "and" in pair and apple < clock


def test_plain_caption_and_everyday_word() -> None:
    """Oracle: what a person would type."""
    assert plain_caption(CAR) == "an automobile"
    assert words_for(CAR) == ["automobile", "car"]


def test_painting_puts_objects_on_the_colour() -> None:
    """Oracle: colours and places written down for three plain sprites."""
    pictures = [
        Picture((Object(0),), "blue"),
        Picture((Object(0, mirrored=True),), "white"),
        Picture((Object(1, "left"), Object(2, "right")), "black"),
    ]
    x = (Painter(squares()).paint(pictures) + 1) * 127.5
    assert x.shape == (3, 3, SIZE, SIZE)

    def pixel(row: int, px: int, py: int) -> tuple[int, ...]:
        return tuple(x[row, :, py, px].round().int().tolist())

    assert pixel(0, 10, 64) == (255, 0, 0) and pixel(0, 120, 64) == COLOURS["blue"]
    assert pixel(1, 10, 64) == COLOURS["white"] and pixel(1, 120, 64) == (255, 0, 0)
    assert pixel(2, 5, 64) == (0, 255, 0) and pixel(2, 69, 64) == (0, 0, 255)
    assert pixel(2, 5, 5) == COLOURS["black"] and pixel(2, 60, 64) == COLOURS["black"]


def test_other_kinds_of_pictures() -> None:
    """Oracle: places and colours written down: stacked, small, counted, grey, outlined."""
    pictures = [
        Picture((Object(1, "above"), Object(2, "below")), "black"),
        Picture((Object(0),), "blue", small=True),
        Picture((Object(0),), "blue", count=2),
        Picture((Object(0),), "blue", count=3),
        Picture((Object(0),), style="grey"),
        Picture((Object(0),), style="outline"),
    ]
    kinds = ["pair", "small", "count", "count", "style", "style"]
    assert [p.kind for p in pictures] == kinds
    x = (Painter(squares()).paint(pictures) + 1) * 127.5

    def pixel(row: int, px: int, py: int) -> tuple[int, ...]:
        return tuple(x[row, :, py, px].round().int().tolist())

    red, blue = (255, 0, 0), COLOURS["blue"]
    assert pixel(0, 40, 10) == (0, 255, 0) and pixel(0, 40, 120) == (0, 0, 255)
    assert pixel(1, 40, 64) == red and pixel(1, 10, 64) == blue and pixel(1, 40, 10) == blue
    assert pixel(2, 10, 64) == red and pixel(2, 70, 64) == red and pixel(2, 40, 64) == blue
    assert pixel(3, 10, 10) == red and pixel(3, 70, 10) == red and pixel(3, 40, 120) == red
    assert pixel(4, 10, 64) == (76, 76, 76) and pixel(4, 120, 64) == COLOURS["white"]
    assert pixel(5, 20, 64) == COLOURS["white"] and max(pixel(5, 63, 64)) < 60
    flat = torch.full((4, 8, 8), 255.0)  # nothing changes inside, so only the rim is drawn
    assert not outline(flat)[3, 1:-1, 1:-1].any() and (outline(flat)[3, 0] == 255).all()


def test_held_out_combinations_are_never_drawn() -> None:
    """Oracle: the list itself, long enough here to hit often without the check."""
    held = held_out(EMOJI, 40, 20)
    assert held == sorted(set(held)) == held_out(EMOJI, 40, 20)
    assert sum(place in ("above", "below") for _, _, place in held) == 20 and len(held) == 60
    source = PictureSource(EMOJI, frozenset(held), Shares(white=0.2, pairs=0.5), mirror=0.5)
    rng = random.Random(0)
    drawn = [source.draw(rng) for _ in range(300)] + plan_pictures(source, 5, 100, 20)
    met = {(EMOJI[o.index].name, p.background, o.place) for p in drawn for o in p.objects}
    assert met and not met & set(held)
    clocks = [o for p in drawn for o in p.objects if o.index == 2]
    assert clocks and not any(o.mirrored for o in clocks)  # a mirrored clock tells another time


def test_proportions_are_those_of_the_recipe() -> None:
    """Oracle: the shares asked for, whatever the number of pictures of each kind."""
    shares = Shares(white=0.7, pairs=0.2, counts=0.03, smalls=0.05, styles=0.02)
    source = PictureSource(EMOJI, frozenset(), shares, mirror=0.1, favour=5.0)
    pictures = plan_pictures(source, 4, 30, 20)
    weights = proportions(source, pictures)
    assert weights.sum().item() == pytest.approx(1)

    def share(chosen: Callable[[Picture], bool]) -> float:
        return sum(w for w, p in zip(weights.tolist(), pictures, strict=True) if chosen(p))

    assert share(lambda p: len(p.objects) == 2) == pytest.approx(0.2)
    assert share(lambda p: p.count > 1) == pytest.approx(0.03)
    assert share(lambda p: p.small) == pytest.approx(0.05)
    assert share(lambda p: p.style != "colour") == pytest.approx(0.02)
    plain = 1 - 0.2 - 0.03 - 0.05 - 0.02
    assert share(lambda p: p.kind == "white") == pytest.approx(plain * 0.7)
    own = [w / sum(source.weights) for w in source.weights]
    # apple and car are favourites, the clock is not; food counts 1.4
    assert own[0] == pytest.approx(5 * 1.4 / (5 * 1.4 + 5 + 1))
    clocks = share(lambda p: p.kind in ("white", "colour") and p.objects == (Object(2),))
    assert clocks == pytest.approx(plain * own[2])
    turned = share(lambda p: p.kind == "white" and p.objects[0].mirrored)
    assert turned == pytest.approx(plain * 0.7 * 0.1 * (own[0] + own[1]))


def test_groups_are_weighed_as_asked_and_favourites_within_them() -> None:
    """Oracle: arithmetic; a group that is not named keeps its weight, one that does not exist is refused."""
    groups = GROUP_WEIGHT | dict([group_weight("Food & Drink=0.5")])
    source = PictureSource(EMOJI, frozenset(), Shares(), mirror=0.1, favour=3.0, groups=groups)
    assert source.weights[:3] == [1.5, 3.0, 1.0]  # apple, car, clock
    for text in ("Fruit=1", "Flags", "Flags=often", "Flags=-1", "Flags=nan"):
        with pytest.raises(ArgumentTypeError, match="expected GROUP=WEIGHT"):
            group_weight(text)


def test_committed_held_out_list_has_the_form_of_the_code() -> None:
    """Oracle: the committed file: 200 different rows side by side or alone, 60 above or below."""
    path = Path(__file__).parents[2] / "scripts" / "embedded" / "heldout.txt"
    rows = [tuple(line.split("\t")) for line in path.read_text("utf-8").splitlines()]
    assert len(set(rows)) == len(rows)
    assert all(colour in COLOURS and colour != "white" for _, colour, _ in rows)
    stacked = [row for row in rows if row[2] in ("above", "below")]
    assert len(stacked) == HELD_OUT_STACKED and len(rows) - len(stacked) == HELD_OUT_COUNT
    assert {place for _, _, place in rows} == {"middle", "left", "right", "above", "below"}


def test_vocabulary_holds_every_word_of_training() -> None:
    """Oracle: captions drawn at random hold no unknown word; a word never used is unknown."""
    vocabulary = Vocabulary.of(every_caption(EMOJI, tuple(COLOURS)))
    shares = Shares(white=0.5, pairs=0.4, counts=0.1, smalls=0.1, styles=0.1)
    source = PictureSource(EMOJI, frozenset(), shares, mirror=0.1)
    rng = random.Random(3)
    texts = [caption(source.draw(rng), EMOJI, rng) for _ in range(500)]
    assert not (vocabulary.rows([*texts, ""]) == UNKNOWN).any()
    assert (vocabulary.rows(["a quantum zebra"]) == UNKNOWN).any()


def test_full_table_gives_unused_tokens_one_row() -> None:
    """Oracle: row numbers as values."""
    vocabulary = Vocabulary([320, 736])
    table = vocabulary.full_table(torch.arange(5.0)[:, None])
    assert table.shape == (VOCABULARY_SIZE, 1)
    assert [table[i].item() for i in (49406, 49407, 320, 736, 0, 999)] == [0, 1, 3, 4, UNKNOWN, UNKNOWN]


def test_the_font_draws_an_apple_and_refuses_what_it_lacks() -> None:
    """Oracle: an apple is mostly red and has an empty corner; two joined glyphs are no emoji of the font."""
    path = find_font()
    if path is None or not features.check("raqm"):
        pytest.skip("needs Noto Color Emoji (fonts-noto-color-emoji) and a Pillow with Raqm")
    font = ImageFont.truetype(path, STRIKE, layout_engine=ImageFont.Layout.RAQM)
    apple = render(font, APPLE.text)
    assert apple is not None and apple.shape == (SIZE, SIZE, 4)
    red, green, blue, alpha = apple.reshape(-1, 4).astype(float).mean(0)
    assert red > 2 * green and red > 2 * blue and 60 < alpha < 250
    assert not apple[0, 0].any() and (apple[..., :3] <= apple[..., 3:]).all()
    assert render(font, APPLE.text + CAR.text) is None
    assert render(font, "\U000e0020") is None
