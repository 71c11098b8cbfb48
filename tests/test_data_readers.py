"""The readers of cells: what is formatted is read back, what is damaged is never another value, no text is an error."""

import math
from datetime import date

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core.data import readers

SOME = settings(deadline=None, max_examples=40)
FEW = settings(deadline=None, max_examples=10)
ALL = "text number integer money odds lengths position status withdrawn calendar clock"
ALL = [*ALL.split(), "time_of_day", "weight_kg", "distance_m"]


def read(reader, *cells):
    frame = pl.DataFrame({"x": cells}, schema={"x": pl.String})
    return frame.select(reader(pl.col("x")))["x"].to_list()


def one(reader, cell):
    return read(reader, cell)[0]


# --- numbers


@SOME
@given(st.lists(st.decimals(0, 10**6, places=2), min_size=1))
def test_numbers_with_points_and_thousands(values):
    want = [float(v) for v in values]
    assert read(readers.number, *(f"{v:.2f}" for v in values)) == want
    assert read(readers.number, *(f"{v:,.2f}" for v in values)) == want


@SOME
@given(st.lists(st.decimals(0, 9999, places=1), min_size=1))
def test_a_column_with_decimal_commas(values):
    cells = [f"{v:.1f}".replace(".", ",") for v in values]
    assert read(readers.number, *cells) == [float(v) for v in values]


def test_a_comma_is_a_thousand_or_a_decimal_or_nothing():
    assert read(readers.number, "1,080", "2.5") == [1080, 2.5]
    assert read(readers.number, "3,5", "1,080") == [3.5, 1.08]
    assert read(readers.number, "3,5", "2.5", "1,080") == [None, 2.5, None]
    assert read(readers.number, "0,125") == [0.125]
    assert read(readers.number, "1,0,8", "1,08,000", ",", "1,") == [None] * 4


@pytest.mark.parametrize("cell", ["2 1/2", "6 4", "11 4", "1 000", "5\u00a0000", "7\t5", "3 .5"])
@pytest.mark.parametrize(
    "reader", ["number", "integer", "odds", "weight_kg", "distance_m", "clock"]
)
def test_a_blank_between_digits_is_never_taken_out(reader, cell):
    assert one(getattr(readers, reader), cell) is None


@SOME
@given(st.integers(-(10**20), 10**20))
def test_a_whole_number_is_read_within_its_limits_only(n):
    assert one(readers.integer, str(n)) == (n if abs(n) <= 32767 else None)
    assert one(lambda e: readers.integer(e, lo=0, hi=9), str(n)) == (n if 0 <= n <= 9 else None)


@pytest.mark.parametrize("cell", ["٣", "３", "१२", "3٫5", "１:２３.３", "２０２４-01-01"])
def test_digits_of_other_scripts_are_no_numbers(cell):
    for name in ALL[1:]:
        assert one(getattr(readers, name), cell) in (None, False)


@pytest.mark.parametrize("cell", ["true", "False", "nan", "inf", "-inf", "1e999", "0x10", "1_000"])
def test_words_of_programs_are_no_numbers(cell):
    for name in ("number", "integer", "odds", "lengths", "position", "weight_kg", "distance_m"):
        assert one(getattr(readers, name), cell) is None


# --- prices


@SOME
@given(
    st.integers(1, 500), st.integers(1, 40), st.sampled_from(["{}/{}", "{}-{}", "{} / {}", "{}–{}"])
)
def test_fractions_with_and_without_the_mark_of_a_favourite(top, bottom, shape):
    want = top / bottom + 1
    marks = ("", "F", "f", " fav", "JF", "cf", "jt fav", "*")
    got = read(readers.odds, *(shape.format(top, bottom) + mark for mark in marks))
    assert got == [pytest.approx(want)] * len(marks)


def test_the_words_for_two():
    assert set(read(readers.odds, "evens", "EvensF", "EVS", "even money", "1/1")) == {2.0}


@SOME
@given(st.decimals(0, 3, places=3))
def test_no_price_is_below_the_floor(value):
    got = one(readers.odds, str(value))
    assert got is None or got >= readers._MIN


# --- lengths

QUARTERS = {0: ("", ""), 1: ("1/4", "¼"), 2: ("1/2", "½"), 3: ("3/4", "¾")}


@SOME
@given(st.integers(0, 99), st.integers(0, 3), st.integers(0, 1), st.sampled_from("-. "))
def test_lengths_in_fractions(whole, quarters, glyph, joint):
    fraction = QUARTERS[quarters][glyph]
    first = str(whole) if whole or not quarters else ""
    cell = (first + ("" if glyph else joint) + fraction) if first and fraction else first + fraction
    for unit in ("", "L", " lengths"):
        assert one(readers.lengths, cell + unit) == whole + quarters / 4


WORDS = [(w, n) for n, words in readers._SHORT.items() for w in words]


def test_lengths_in_words_whatever_their_case():
    words, want = zip(*WORDS, strict=True)
    for spell in (str, str.lower, str.upper, " {} ".format, "+{}".format):
        assert read(readers.lengths, *map(spell, words)) == [*want]
    assert read(readers.lengths, *(f"{w}+1/2" for w in words)) == [n + 0.5 for n in want]


def test_words_for_far_have_no_length():
    assert read(readers.lengths, *readers.UNMEASURED) == [None] * len(readers.UNMEASURED)


# --- places


@SOME
@given(st.integers(1, 60))
def test_a_place_and_its_marks(n):
    cells = [f"{n}", f"{n}.0", f"{n}DH", f"={n}", f"{n}=", f"{n} 平頭馬", f"{n}(降)", f"{n}(再)"]
    assert read(readers.position, *cells) == [n] * len(cells)
    assert set(read(readers.status, *cells)) == {"finished"}


def test_a_code_has_a_status_and_no_position():
    codes = list(readers.PLACE_CODES)
    for spell in (str, str.lower, ".".join, "({})".format):
        cells = [spell(code) for code in codes]
        assert read(readers.status, *cells) == list(readers.PLACE_CODES.values())
        assert read(readers.position, *cells) == [None] * len(codes)


def test_codes_of_every_source():
    codes = {
        "did_not_finish": "PU F UR RR BD RO SU REF LFT CO DNF FE TNP 中 P U B R S C L".split(),
        "disqualified": "DSQ DISQ DQ 失".split(),
        "non_runner": "NR WD SCR WV WV-A WX WX-A WXNR 取 除 VOI VOID".split(),
    }
    for status, words in codes.items():
        assert set(read(readers.status, *words)) == {status}
    assert read(readers.status, "0", "61", "-1", "XX", "1 2", "12345678901") == [None] * 6


# --- days

DAYS = st.dates(date(1900, 1, 1), date(2100, 12, 31))


@SOME
@given(DAYS)
def test_days_there_and_back(day):
    formats = "%Y-%m-%d,%d/%m/%Y,%d-%m-%Y,%d.%m.%Y,%Y/%m/%d,%d %b %Y,%Y%m%d,%Y-%m-%d 00:00:00"
    cells = [day.strftime(fmt) for fmt in formats.split(",")]
    cells.append(f"{day.day}/{day.month}/{day.year}")
    assert read(readers.calendar, *cells) == [day] * len(cells)
    short = one(readers.calendar, day.strftime("%d/%m/%y"))
    assert short is None or short.year in range(1950, 2050)
    if 1950 <= day.year < 2050:
        assert short == day


@SOME
@given(st.text("0123456789-/. ", max_size=12))
def test_no_day_lies_outside_its_range(cell):
    for reader in (readers.calendar, readers.day(), readers.day("%d/%m/%Y")):
        got = one(reader, cell)
        assert got is None or 1900 <= got.year <= 2100


@pytest.mark.parametrize(
    "cell", ["31/02/2024", "13/13/2024", "00/01/2024", "2024-02-30", "0024-02-13"]
)
def test_a_day_that_is_none(cell):
    assert one(readers.calendar, cell) is None


def test_a_form_that_is_insisted_on_takes_no_short_year():
    assert read(readers.day("%d/%m/%Y"), "13/02/24", "13/02/2024") == [None, date(2024, 2, 13)]


# --- times


@SOME
@given(st.times())
def test_times_of_day_there_and_back(t):
    minutes = t.hour * 60 + t.minute
    for fmt in (
        "%H:%M",
        "%H:%M:%S",
        "%H:%M:00.000",
        "%Hh%M",
        "%I:%M %p",
        "%I.%M%p",
        "1/07/2026 %H:%M",
    ):
        assert one(readers.time_of_day, t.strftime(fmt)) == minutes


@FEW
@given(
    st.integers(10 * 60, 13 * 60),
    st.lists(st.integers(20, 45), min_size=2, max_size=9),
    st.booleans(),
)
def test_a_meeting_in_twelve_hours_is_the_meeting_in_twenty_four(first, gaps, padded):
    offs = [first]
    for gap in gaps:
        offs.append(offs[-1] + gap)
    if offs[-1] < 13 * 60 or offs[-1] >= 22 * 60:
        return
    twelve = [f"{(m // 60 - 1) % 12 + 1:{'02' if padded else ''}}:{m % 60:02}" for m in offs]
    whole = [f"{m // 60:02}:{m % 60:02}" for m in offs]
    no = range(len(offs))
    frame = pl.concat(
        pl.DataFrame({"x": cells, "no": no, "course": course})
        for course, cells in (("a", twelve), ("b", whole))
    )
    for order in (None, pl.col("no")):
        got = frame.select(readers.meeting_time(pl.col("x"), ["course"], order))["x"].to_list()
        assert got == [*offs, *offs]


@pytest.mark.parametrize(
    ("zone", "day", "minutes", "want"),
    [
        ("Europe/London", date(2024, 10, 27), 90, "2024-10-27 00:30"),
        ("Europe/London", date(2024, 3, 31), 90, None),
        ("America/New_York", date(2024, 11, 3), 90, "2024-11-03 05:30"),
        ("Australia/Melbourne", date(2024, 10, 6), 150, None),
        ("Asia/Tokyo", date(2024, 7, 1), 600, "2024-07-01 01:00"),
    ],
)
def test_the_hour_that_comes_twice_and_the_one_that_never_comes(zone, day, minutes, want):
    frame = pl.DataFrame({"day": [day], "m": [minutes]})
    got = frame.select(readers.off_utc(pl.col("day"), pl.col("m"), zone)).item()
    assert (got and f"{got:%Y-%m-%d %H:%M}") == want


@SOME
@given(st.integers(2000, 59000))
def test_clocks_there_and_back(hundredths):
    minutes, rest = divmod(hundredths, 6000)
    for joint in ":.":
        assert one(readers.clock, f"{minutes}{joint}{rest / 100:05.2f}") == hundredths / 100


# --- weights and distances


@SOME
@given(st.integers(5, 13), st.integers(0, 13))
def test_stones_and_pounds(stone, pounds):
    want = pytest.approx((14 * stone + pounds) * readers.POUND_KG, abs=1e-3)
    for cell in (f"{stone}-{pounds}", f"{stone}st {pounds}lb", f"{stone} - {pounds}"):
        assert one(readers.weight_kg, cell) == want


@SOME
@given(st.integers(1, 4), st.integers(0, 7), st.integers(0, 219))
def test_miles_furlongs_and_yards(miles, furlongs, yards):
    cell = f"{miles}m{f'{furlongs}f' if furlongs else ''}{f' {yards}y' if yards else ''}"
    want = round(miles * 1609.344 + furlongs * 201.168 + yards * 0.9144)
    assert one(readers.distance_m, cell) == want


def test_quarters_of_miles_and_furlongs():
    got = read(readers.distance_m, "1¼m", "1½m", "1¾m", "6½f", "1m½f", "2,400m")
    assert got == [2012, 2414, 2816, 1308, 1710, 2400]


# --- anything at all

FORMATTED = st.one_of(
    st.tuples(st.just("number"), st.decimals(0, 9999, places=2).map(str)),
    st.tuples(
        st.just("odds"),
        st.tuples(st.integers(1, 99), st.integers(1, 9)).map("{0[0]}/{0[1]}".format),
    ),
    st.tuples(st.just("calendar"), DAYS.map(str)),
    st.tuples(st.just("time_of_day"), st.times().map(lambda t: f"{t:%H:%M}")),
    st.tuples(st.just("lengths"), st.sampled_from(["nk", "1½", "クビ+1/2", "3-1/4", "shd"])),
    st.tuples(st.just("position"), st.integers(1, 60).map(str)),
)


@SOME
@given(FORMATTED, st.sampled_from("? \x00\u200b,;x٣"), st.data())
def test_a_damaged_cell_is_nothing_or_what_it_was(formatted, dirt, data):
    name, cell = formatted
    at = data.draw(st.integers(0, len(cell)))
    reader = getattr(readers, name)
    got, was = one(reader, cell[:at] + dirt + cell[at:]), one(reader, cell)
    assert was is not None
    if dirt == ",":  # between digits a comma has a meaning of its own
        return
    assert got is None or got == was


@SOME
@given(
    st.lists(
        st.text(max_size=14) | st.text("0123456789.,-/+: ½¼fmstlbkgNRDH", max_size=9), min_size=1
    )
)
def test_no_text_is_an_error_or_nonsense(cells):
    for name in ALL:
        values = read(getattr(readers, name), *cells)
        assert len(values) == len(cells)
        for v in values:
            assert not isinstance(v, float) or (
                math.isfinite(v) and (name in ("number", "money") or v >= 0)
            )


@FEW
@given(st.lists(st.text("0123456789:.apm ", max_size=8), min_size=1, max_size=9))
def test_a_meeting_lasts_no_longer_than_a_day(cells):
    frame = pl.DataFrame({"x": cells, "c": "a"})
    times = frame.select(readers.meeting_time(pl.col("x"), ["c"]))["x"].to_list()
    assert all(t is None or 0 <= t < 1440 for t in times)
