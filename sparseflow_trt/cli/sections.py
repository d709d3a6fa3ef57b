"""The help of a command with many options: in sections, its own options first."""

from __future__ import annotations

import click

SECTION = "section"  # what an option names its own by
_OWN = "Options"


class SectionedCommand(click.Command):
    """A command whose help lists its options by section, in the order in which sections first come."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a list for each section."""
        sections: dict[str, list[tuple[str, str]]] = {_OWN: []}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                sections.setdefault(getattr(param, SECTION, _OWN), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
