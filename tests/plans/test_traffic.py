"""Traffic: what a histogram of M may look like, and what is wrong with one that cannot be read."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.errors import ShapeError
from sparseflow_trt.plans.traffic import Traffic, read_traffic


def _read(folder: Path, text: str) -> Traffic:
    path = folder / "traffic"
    path.write_text(text, encoding="utf-8")
    return read_traffic(path)


@pytest.mark.parametrize(
    "text",
    [
        "m,weight\n512,10\n64,2.5\n",
        "M,Count\r\n512,10\r\n64,2.5\r\n",
        "\ufeffm,weight\n64,2.5\n\n512,10",
        "day,weight,m\nmonday,4,512\nmonday,6,512\nsunday,2.5, 64\n",
        "m,weight\n64,2.5\n512,10\n2048,0\n",
        '{"512": 10, "64": 2.5}',
        '[{"m": 512, "weight": 10}, {"m": 64, "weight": 2.5}]',
        '  [{"m": "512", "count": "10"}, {"m": 64, "count": 2.5}]',
        '[{"day": "monday", "M": 512, "Weight": 10}, {"weight ": 2.5, "m": 64}]',
    ],
)
def test_csv_and_json_say_the_same(text: str, tmp_path: Path) -> None:
    traffic = _read(tmp_path, text)
    assert traffic == Traffic(((64, 2.5), (512, 10.0)))
    assert traffic.total == 12.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty."),
        (" \n", "is empty."),
        ('{"512": 10, "512": 3}', "'512' stands twice in one object"),
        ("512,10\n", "begins with '512,10' and not with m,weight."),
        ("m,weight,count\n1,2,3\n", "begins with 'm,weight,count'"),
        ("m,m,weight\n1,2,3\n", "begins with 'm,m,weight'"),
        ("m,weight\n1,2,3\n", "row 2: 3 cells under 2 names."),
        ("m,weight\n1,2\n0,2\n", "row 3: '0' is not M (a whole number from 1 on)."),
        ("m,weight\n1.5,2\n", "row 2: '1.5' is not M"),
        ("m,weight\n٣,2\n", "row 2: '٣' is not M"),
        ("m,weight\n4294967296,2\n", "is not M"),
        ("m,weight\n1,-2\n", "row 2: '-2' is not a weight (a number from 0 on)."),
        ("m,weight\n1,nan\n", "row 2: 'nan' is not a weight"),
        ("m,weight\n1,often\n", "row 2: 'often' is not a weight"),
        ("m,weight\n1,0\n", "holds no M with a weight above 0."),
        ("m,weight\n", "holds no M with a weight above 0."),
        ("m,weight\n1,1e308\n2,1e308\n", "holds weights too large to be added up."),
        ('m,weight\n"1,2\n', "is neither CSV nor JSON: "),
        ("{}", "holds no M with a weight above 0."),
        ("{", "is not JSON: "),
        ("[" * 100_000, "is not JSON: "),
        ('{"many": 1}', "M='many': 'many' is not M"),
        ('{"1": true}', "M='1': True is not a weight"),
        ('{"1": [1]}', "M='1': [1] is not a weight"),
        ('{"1": 1e999}', "M='1': inf is not a weight"),
        ("[1]", "entry 1: 1 is not one m with one weight."),
        ('[{"m": 1}]', "entry 1: {'m': 1} is not one m with one weight."),
        ('[{"m": 1, "weight": 1, "count": 1}]', "entry 1: "),
        ('[{"m": 1, "M": 2, "weight": 1}]', "entry 1: "),
        ('[{"m": true, "weight": 1}]', "entry 1: True is not M"),
    ],
)
def test_what_is_no_traffic(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ShapeError) as caught:
        _read(tmp_path, text)
    assert says in caught.value.message
    assert "\n" not in caught.value.message
    assert "m,weight" in caught.value.hint


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="does not exist"):
        read_traffic(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"m,weight\n1,\xff\n")
    with pytest.raises(ShapeError, match="is no traffic file: it holds no text"):
        read_traffic(tmp_path / "bytes.csv")


@given(st.dictionaries(st.integers(1, 2**31 - 1), st.floats(1e-6, 1e12), min_size=1, max_size=20))
def test_what_is_written_is_read(sizes: dict[int, float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = "\n".join(f"{m},{weight!r}" for m, weight in sizes.items())
        expected = Traffic(tuple(sorted(sizes.items())))
        assert _read(Path(folder), f"m,weight\n{rows}\n") == expected
        assert _read(Path(folder), json.dumps({str(m): weight for m, weight in sizes.items()})) == expected
        assert math.isclose(expected.total, sum(sizes.values()))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_read_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            traffic = _read(Path(folder), text)
        except ShapeError as error:
            assert error.hint
        else:
            assert traffic.total > 0
