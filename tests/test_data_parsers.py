"""Margins, clocks, prices and distances: whatever a source writes is read right or not at all."""

import math

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core.data.readers import clock, distance_m, integer, lengths, number, odds

settings.register_profile("quick", deadline=None, max_examples=60)
settings.load_profile("quick")


def read(parser, cells):
    return (
        pl.DataFrame({"x": cells}, schema={"x": pl.String})
        .select(y=parser(pl.col("x")))["y"]
        .to_list()
    )


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 3), st.sampled_from("-. ")), min_size=1)
)
def test_margins_in_quarter_lengths(cells):
    def spell(whole, quarters, joint):
        fraction = ["", "1/4", "1/2", "3/4"][quarters]
        return joint.join(p for p in (str(whole) if whole or not quarters else "", fraction) if p)

    assert read(lengths, [spell(*c) for c in cells]) == [w + q / 4 for w, q, _ in cells]


def test_margins_in_words_are_ordered():
    for words in (
        ["平頭馬", "鼻位", "短頭位", "頭位", "頸位"],
        ["同着", "ハナ", "アタマ", "クビ", "大"],
        ["DH", "NSE", "SH", "HD", "NK"],
    ):
        values = read(lengths, words)
        assert None not in values
        assert values == sorted(values)


@given(st.lists(st.floats(20, 900), min_size=1), st.sampled_from([":", "."]))
def test_clock(seconds, joint):
    cells = [
        f"{int(s // 60)}{joint}{s % 60:05.2f}" if s >= 60 else f"{s:.2f}"
        for s in (round(s, 2) for s in seconds)
    ]
    want = [round(s, 2) for s in seconds]
    assert all(
        math.isclose(a, b, abs_tol=0.006)
        for a, b, c in zip(read(clock, cells), want, cells, strict=True)
        if not c.endswith("60.00")
    )


@given(st.lists(st.floats(1.01, 9999), min_size=1))
def test_decimal_odds(prices):
    assert read(number, [f"{o:,.2f}" for o in prices]) == [round(o, 2) for o in prices]


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 40)), min_size=1))
def test_fractional_odds(prices):
    assert read(odds, [f"{a}/{b}" for a, b in prices]) == [a / b + 1 for a, b in prices]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 7), st.integers(0, 219)), min_size=1))
def test_imperial_distance(parts):
    cells = [f"{m}m{f'{f}f' if f else ''}{f'{y}y' if y else ''}" for m, f, y in parts]
    assert read(distance_m, cells) == [
        round(m * 1609.344 + f * 201.168 + y * 0.9144) for m, f, y in parts
    ]


@given(st.lists(st.text(max_size=12), min_size=1, max_size=20))
def test_no_text_breaks_a_parser_or_yields_nonsense(cells):
    for parser in (lengths, clock, number, integer, odds, distance_m):
        values = read(parser, cells)
        assert len(values) == len(cells)
        assert all(v is None or math.isfinite(v) for v in values)
    assert all(v is None or v >= 0 for v in read(lengths, cells))
    assert all(v is None or v >= 0 for v in read(clock, cells))
