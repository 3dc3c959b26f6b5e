"""factors.csv: what makes no difference is read, everything else is refused in one line with the row."""

import random
import unicodedata
from pathlib import Path

import pytest

from jobs.data.sources.factor_table import read_factor_table
from jobs.errors import UserError

FILES = ("a/one.png", "a/two.jpg", "b/three.PNG")
EXPECTED = {
    "a/one.png": {"size": "10", "kind": "black cat"},
    "a/two.jpg": {"size": "9", "kind": "dog"},
    "b/three.PNG": {"size": "9", "kind": "an, ant"},
}
PLAIN = 'file,size,kind\na/one.png,10,black cat\na/two.jpg,9,dog\nb/three.PNG,9,"an, ant"\n'


def write(folder: Path, table: str | bytes) -> Path:
    (folder / "factors.csv").write_bytes(table.encode() if isinstance(table, str) else table)
    return folder


@pytest.mark.parametrize(
    "table",
    [
        PLAIN,
        "\ufeff" + PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace(",", " , ").replace('"an ,  ant"', '"an, ant"\t'),
        PLAIN.replace("a/one.png", "./a//one.png").replace("b/three", "b\\three"),
        PLAIN.replace("\n", "\n\n,,,\n"),
        PLAIN + "a/one.png,10,black cat\n",
        PLAIN + "left out.gif,1,1\n",
        PLAIN.replace("dog", '"dog"'),
    ],
)
def test_factor_table_harmless_differences_are_read(tmp_path: Path, table: str) -> None:
    (tmp_path / "left out.gif").touch()
    assert read_factor_table(write(tmp_path, table), FILES) == EXPECTED


def test_factor_table_missing_gives_no_factors(tmp_path: Path) -> None:
    assert read_factor_table(tmp_path, FILES) == {}


def test_factor_table_unicode_normalization_is_ignored(tmp_path: Path) -> None:
    """A path in another normal form matches if one file only can be meant; an exact path always does."""
    nfc, nfd = (unicodedata.normalize(form, "\u00e9.png") for form in ("NFC", "NFD"))
    value = unicodedata.normalize("NFD", "\u00e8")
    for file, cell in ((nfc, nfd), (nfd, nfc)):
        table = read_factor_table(write(tmp_path, f"file,kind\n{cell},{value}\n"), (file,))
        assert table == {file: {"kind": "\u00e8"}}
    table = read_factor_table(write(tmp_path, f"file,kind\n{nfd},d\n{nfc},c\n"), (nfc, nfd))
    assert table == {nfc: {"kind": "c"}, nfd: {"kind": "d"}}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "header"),
        ("name,size\na/one.png,1\n", "name,size"),
        ("file\na/one.png\n", "header"),
        ("file;size\na/one.png;1\n", "file;size"),
        ("file,size (cm)\na/one.png,1\n", r"'size \(cm\)'"),
        ("file,,size\na/one.png,1,2\n", "''"),
        ("file,Size,size\na/one.png,1,2\n", "'size'.*'Size'"),
        ("file,size,FILE\na/one.png,1,2\n", "'FILE'"),
        ("file,..\na/one.png,1\n", r"'\.\.'"),
        ("file,rung_0\na/one.png,1\n", "'rung_0'"),
        (f"file,{'a' * 101}\na/one.png,1\n", "100"),
        (PLAIN + "a/one.png,11,black cat\n", "row 5: 'a/one.png'.*row 2"),
        (PLAIN + "a/on.png,10,black cat\n", "row 5: .*'a/on.png'.*'a/one.png'"),
        (PLAIN + "/etc/\x1b[31m/zebra,10,cat\n", r"row 5: .*x1b\[31m"),
        (PLAIN + f"{'x' * 5000},10,cat\n", "row 5"),
        (PLAIN + ",10,cat\n", "row 5"),
        (PLAIN.replace("9,dog", ",dog"), "row 3: size of 'a/two.jpg'"),
        (PLAIN.replace("9,dog", "9, "), "row 3: kind of 'a/two.jpg'"),
        (PLAIN.replace("9,dog", "9"), "row 3: kind of 'a/two.jpg'"),
        (PLAIN.replace('"', ""), "row 4: 4 cells"),
        ("file,size\na/one.png,1\n", "'a/two.jpg' and 1 other"),
        (PLAIN.replace("9,dog", '"9,dog'), "row 3"),
        (PLAIN.replace("9,dog", '"9"x,dog'), "row 3"),
        (PLAIN.replace("dog", "d" * 200_000), "row 3"),
        (PLAIN.replace("dog", "d\0g"), "NUL"),
        (PLAIN.encode("utf-16"), "UTF-8"),
        (PLAIN.encode("utf-16-le"), "NUL"),
        (PLAIN.replace("dog", "h\u00fcndin").encode("latin-1"), "UTF-8"),
    ],
)
def test_factor_table_invalid_error_names_the_row(tmp_path: Path, table: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=rf"factors\.csv: (?s:.*){message}") as caught:
        read_factor_table(write(tmp_path, table), FILES)
    assert str(caught.value).isprintable()


def test_factor_table_mutants_are_read_or_refused(tmp_path: Path) -> None:
    """Any bytes give complete factors or one printable line."""
    rng = random.Random(0)
    original, lines = PLAIN.encode(), []
    for _ in range(300):
        mutant = bytearray(original)
        for _ in range(rng.randrange(1, 5)):
            position = rng.randrange(len(mutant))
            mutant[position : position + rng.randrange(3)] = rng.choices(b'\0",\r\n\xff \x1bab/', k=rng.randrange(3))
        try:
            table = read_factor_table(write(tmp_path, bytes(mutant)), FILES)
        except UserError as error:
            lines.append(str(error))
            continue
        assert tuple(table) == FILES
        assert len({tuple(factors) for factors in table.values()}) == 1
        assert all(value for factors in table.values() for value in factors.values())
    assert len(lines) > 100
    assert all(line.isprintable() for line in lines)
