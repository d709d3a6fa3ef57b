"""The terminal: tables, progress bars and JSON. Quiet where it is not a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sparseflow_trt._listing import listed

_WIDTH = 160  # of a table in a file or a pipe, where there is no terminal to ask
# Where a table is too wide these columns give way: numbers and words of a fixed list are not broken.
_WRAPPED = {
    "Basis", "Candidate", "Finding", "Install", "Kernel or layer", "Layer", "Limit", "Now", "Of what",
    "Output", "Prune", "Reason", "Source", "Thresholds", "Types", "Was", "Why", "Wins at M",
}  # fmt: skip
# Of those, the ones that hold numbers and words of a fixed list: they are broken between them alone.
_WHOLE_WORDS = {"Basis", "Candidate", "Limit", "Now", "Prune", "Types", "Was", "Wins at M"}
_GAP = 2  # between two columns
_ROOM = 40  # for sentences beside the other columns; with less they stand below the table
_NAME = 36  # of a name that is not broken
_LONG_WORD = 32  # of a layer's name, in a table that has nothing else to tell it by
_NUMBER = re.compile(r"\d+")
_LEAST_BYTES = 10_000_000  # a step that counts further counts bytes: nothing else comes in such numbers
# Where text is broken: at spaces, a word with no room behind the dots of a name, and only then at its dashes.
_PARTS = tuple(map(re.compile, (r"\S+", r".+?(?:[./:](?=\D)|$)", r".+?(?:[_-](?=\D)|$)")))


class _Table(Table):
    """A table that is wider than the terminal rather than with numbers cut: 102 is not 1024.

    Before it is, it leaves out the columns that can be spared, in their order, and says which.
    """

    spared: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        every = self.columns
        unbounded = options.update(width=10_000)
        tight = 0  # the least of the layers' names, which are given more while other columns can be spared
        for column in every:
            cells = (column.header, *column.cells)
            widths = [Measurement.get(console, unbounded, cell) for cell in cells]
            whole, longest_word = (max(width[i] for width in widths) for i in (1, 0))
            if self.spared and column.header == "Output" and whole <= _NAME:
                column.no_wrap = True  # the figures give way first
            if column.header in _WHOLE_WORDS:
                word = longest_word
            elif column.header == "Of what":
                word = min(longest_word, _LONG_WORD)
            else:
                word = min(max(map(_longest_part, cells)), _LONG_WORD)
            column.min_width, column.max_width = whole if column.no_wrap else word, whole
            if self.spared and column.header == "Layer":
                tight, column.min_width = word, min(whole, _NAME)
        left_out: list[str] = []
        for name in self.spared:
            if self._least() <= options.max_width:
                break
            left_out.append(name)
            self.columns = [column for column in self.columns if column.header != name]
        for column in self.columns:
            over = self._least() - options.max_width
            if over > 0 and tight and column.header == "Layer":
                column.min_width = max((column.min_width or 0) - over, tight)
        wide = options.update(width=max(options.max_width, self._least()))
        self._fit(wide.max_width)
        self.columns = [
            replace(column, _index=i, _cells=[_broken_cell(cell, column.width or 0) for cell in column.cells])
            for i, column in enumerate(self.columns)
        ]
        try:
            yield from super().__rich_console__(console, wide)
        finally:
            self.columns = every
        if left_out:
            yield Text(f"Not shown, as the terminal is narrow: {', '.join(left_out)}.", "dim")

    def _fit(self, room: int) -> None:
        """Gives columns their widths: the widest gives way first, and none below its least.

        rich has the widest give way below that, and the others not, so that the table is too wide.
        """
        widths = [column.max_width or 0 for column in self.columns]
        for _ in range(sum(widths) + _GAP * (len(widths) - 1) - room):
            wider = [i for i, column in enumerate(self.columns) if widths[i] > (column.min_width or 0)]
            widths[max(wider, key=lambda i: widths[i])] -= 1
        for column, width in zip(self.columns, widths, strict=True):
            column.width = width

    def _least(self) -> int:
        return sum(column.min_width or 0 for column in self.columns) + _GAP * (len(self.columns) - 1)


def _longest_part(cell: Any) -> int:
    """The width of the longest part that a cell can be broken into."""
    parts = [str(cell)]
    for level in _PARTS:
        parts = [part[0] for text in parts for part in level.finditer(text)]
    return max(map(cell_len, parts), default=0)


def _broken_cell(cell: Any, width: int) -> Text:
    """A cell in lines that fit: rich's own would break a name in the midst of its words."""
    text = cell.copy() if isinstance(cell, Text) else Text(str(cell))
    starts = [0]

    def fill(begin: int, end: int, level: int) -> None:
        for part in _PARTS[level].finditer(text.plain, begin, end):
            if part.end() - starts[-1] > width and part.start() > starts[-1]:
                starts.append(part.start())
            if part.end() - starts[-1] > width and level + 1 < len(_PARTS):
                fill(*part.span(), level + 1)

    fill(0, len(text), 0)
    lines = text.divide(starts[1:])
    for line in lines:
        line.rstrip()
    return Text("\n").join(lines)


def out() -> Console:
    """The console for results."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH
    return Console(width=width, highlight=False, markup=False, soft_wrap=True)


def say(said: str | Text, whole: str = "") -> None:
    """Prints sentences: in a terminal with each line broken between words, elsewhere as they are.

    No word is broken, so that a path or a name can be copied.

    Args:
        said: Lines; what one is indented by its further lines are, and a little more.
        whole: Behind it what is not broken at all, such as a command.
    """
    to = out()
    text = Text(said) if isinstance(said, str) else said
    if not to.is_terminal:
        to.print(text + whole)
        return
    lines = [part for line in text.split(allow_blank=True) for part in _broken(to, line)]
    gap = text.plain[len(text.plain.rstrip()) :]  # lines are stripped of it
    if whole and lines[-1].cell_len + cell_len(gap + whole) <= to.width:
        lines[-1] += gap + whole
    elif whole:
        lines.append(Text(f"  {whole}"))
    for line in lines:
        to.print(line)


def _broken(to: Console, line: Text) -> Iterator[Text]:
    """A line in parts that fit, broken at spaces alone: rich's own breaks long words, too."""
    indent = len(line.plain) - len(line.plain.lstrip()) + _GAP
    used, starts = 0, []
    for word in re.finditer(r"\s*(\S+(?: %\S*)?)", line.plain):  # a percentage is one word
        if used and used + cell_len(word[0]) > to.width:
            starts.append(word.start(1))
            used = indent + cell_len(word[1])
        else:
            used += cell_len(word[0])
    for number, part in enumerate(line.divide(starts)):
        part.rstrip()
        yield Text(" " * indent if number else "") + part


def styled(text: str, style: str) -> Text:
    """Coloured text. Plain strings are printed as they are, with no markup: names may hold brackets."""
    return Text(text, style)


@contextlib.contextmanager
def json_alone() -> Iterator[None]:
    """Keeps a command's standard output to `print_json` in the block: a program reads it as one JSON text.

    What a user's module, metric or loader prints, or a library, goes to standard error.
    """
    click.get_current_context().obj = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(data: Any) -> None:
    """Prints plain data as JSON on standard output, in ASCII: it is read by programs, in any locale."""
    context = click.get_current_context(silent=True)
    kept = context.obj if context else None  # by `json_alone`
    print(json.dumps(data, indent=2, allow_nan=False), file=kept)


def table(*columns: str, title: str | None = None, spared: tuple[str, ...] = ()) -> Table:
    """A table with these columns; those that begin with '>' are aligned to the right.

    Args:
        columns: Their names.
        title: Above it.
        spared: Names of columns to leave out where the terminal is too narrow, the first one first.
    """
    made = _Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    made.spared = spared
    for name in columns:
        made.add_column(
            name.lstrip(">"),
            justify="right" if name.startswith(">") else "left",
            overflow="fold",
            no_wrap=name.lstrip(">") not in _WRAPPED,
        )
    return made


def fold_last(
    columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Rows whose last cell, a sentence, has room, and the lines to print below their table.

    Where the other columns leave it little room, a cell becomes a number and the sentence a line behind that
    number, once.

    Args:
        columns: As `table` takes them.
        rows: Plain cells.
    """
    used = 0
    for place, name in enumerate(columns[:-1]):
        widest = max(cell_len(cell) for cell in (name.lstrip(">"), *(row[place] for row in rows)))
        used += _GAP + (min(widest, _NAME) if name in _WRAPPED else widest)
    longest = max((cell_len(row[-1]) for row in rows), default=0)
    if out().width - used >= min(_ROOM, longest):
        return list(rows), []
    numbers = {
        sentence: f"[{number}]"
        for number, sentence in enumerate(dict.fromkeys(r[-1] for r in rows if r[-1]), 1)
    }
    lines = [f"{number} {sentence}" for sentence, number in numbers.items()]
    return [(*row[:-1], numbers.get(row[-1], "")) for row in rows], lines


def add_alike(
    table: Table, rows: Iterable[tuple[str, ...]], colours: Mapping[str, str], name_at: int = 0
) -> None:
    """Adds rows to a table; those that are alike but for numbers in one cell, a name, become one.

    The name of such a row has a * for each number that differs, and how many it stands for behind it:
    `layer.*.attention.query (6)`. It stands where the first of them would.

    Args:
        table: What they are added to.
        rows: Plain cells.
        colours: The style of a cell by its text.
        name_at: The place of the names.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        key = (_NUMBER.sub("*", row[name_at]), *row[:name_at], *row[name_at + 1 :])
        alike.setdefault(key, []).append(row[name_at])
    for (_, *rest), names in alike.items():
        cells = [styled(cell, colours[cell]) if cell in colours else cell for cell in rest]
        table.add_row(*cells[:name_at], _common_name(names) + _count_of(names), *cells[name_at:])


def folded(names: Iterable[str], most: int) -> str:
    """Names for a cell, those that are alike but for numbers as one: `layer.*.query (6), layer.*.key (6)`."""
    return listed([_common_name(found) + _count_of(found) for found in _alike(names)], most)


def quoted_alike(names: Iterable[str]) -> list[str]:
    """Names for a sentence; those that are alike but for numbers become one: `'layer.*.query' (6)`."""
    return [f"'{_common_name(found)}'{_count_of(found)}" for found in _alike(names)]


def quoted_by_reason(reasons: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Of (name, reason) pairs, by reason the names as `quoted_alike` gives them."""
    names_by_reason: dict[str, list[str]] = {}
    for name, why in reasons:
        names_by_reason.setdefault(why, []).append(name)
    return {why: quoted_alike(names) for why, names in names_by_reason.items()}


def _alike(names: Iterable[str]) -> list[list[str]]:
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_NUMBER.sub("*", name), []).append(name)
    return list(alike.values())


def _count_of(names: Sequence[str]) -> str:
    return f" ({len(names)})" if len(names) > 1 else ""


def _common_name(names: list[str]) -> str:
    """The name that they share, with a * for each number that differs."""
    numbers = zip(*(_NUMBER.findall(name) for name in names), strict=True)
    shown = iter(["*" if len(set(found)) > 1 else found[0] for found in numbers])
    return _NUMBER.sub(lambda _: next(shown), names[0])


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function that shows (step, done, total) on standard error; nothing is shown in a pipe.

    Of a step that goes by bytes it shows how many of how many, and of any the time that is left.
    """
    console = Console(file=sys.stderr)  # as it is now: an export takes what is written to it meanwhile
    if not console.is_terminal:
        yield lambda step, done, total: None
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task, current = progress.add_task("Starting", total=None, amount=""), ""

        def show(step: str, done: int, total: int) -> None:
            nonlocal current
            if step != current:  # its own time, and its own speed
                progress.reset(task)
                current = step
            amount = amount_of(done, total)
            progress.update(task, description=step, completed=done, total=total or None, amount=amount)

        yield show


def amount_of(done: int, total: int) -> str:
    """How many bytes of how many a step has done; "" where it counts something else."""
    return f"{size(done)} of {size(total)}" if total >= _LEAST_BYTES else ""


def size(number: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
