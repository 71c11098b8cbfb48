"""Made files in the layout of the Hong Kong source, for the tests of the data room."""

HEAD = (
    "date,venue,race_no,race_name,race_class,distance_m,rating_range,going,course,prize_hkd,"
    "place,horse_no,horse_name,jockey,trainer,actual_wt_lbs,declared_wt_lbs,draw,lbw,running_position,finish_time,win_odds"
)


def runner(race: int, no: int, date: str = "2020-01-01", **change) -> str:
    "One declared runner; the number is also the position, the draw and the order of the weights."
    row = dict(
        date=date, venue="沙田", race_no=race, race_name="甲讓賽", race_class="第四班",
        distance_m=1200, rating_range="60-40", going="好地", course='"草地 - ""A"" 賽道"',
        prize_hkd=800000, place=no, horse_no=no, horse_name=f"馬 (A{race:02}{no})",
        jockey="丙", trainer="丁", actual_wt_lbs=134 - no, declared_wt_lbs=1100, draw=no,
        lbw="-" if no == 1 else f"{no}-1/2", running_position=f"{no} {no}",
        finish_time=f"1:10.{no}0", win_odds=1.5 + no,
    )  # fmt: skip
    return ",".join(str(v) for v in (row | change).values())


def meeting(races: int = 2, runners: int = 3, date: str = "2020-01-01") -> list[str]:
    return [runner(r, n, date) for r in range(1, races + 1) for n in range(1, runners + 1)]


def write(path, lines: list[str], encoding: str = "utf-8"):
    path.write_text("\n".join([HEAD, *lines]) + "\n", encoding=encoding)
    return path
