"""What reaches a terminal: no escape sequence, no turned text, nothing that printing would fail on."""

from __future__ import annotations

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from runner.core.printable import PrintableFormatter, printable
from runner.jobs import terminal
from runner.reporting.summary import summarize
from tests.results import make_result

EVIL = "clip\x1b]0;title\x07\x9b31m\u202egnp.wav\udcff\r"
SHOWN = r"clip\x1b]0;title\x07\x9b31m\u202egnp.wav\xff\x0d"


@given(st.text(st.characters(min_codepoint=0, max_codepoint=0xFFFF, exclude_categories=())))
def test_what_is_shown_can_be_printed_and_does_nothing(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert all(each in "\t\n" or each.isprintable() or not each.isascii() for each in shown)
    assert not {"\x1b", "\x9b", "\u202e", "\u2066", "\r"} & set(shown)
    assert printable(shown) == shown


def test_text_of_all_languages_stays_as_it_is() -> None:
    for text in ("äöü 日本 עברית العربية.wav", "two\nlines\tand a tab", "× realtime ±", "👩‍🚀.wav"):
        assert printable(text) == text


def test_names_that_would_rule_the_terminal_are_shown_as_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=told, width=200))
    record = logging.LogRecord("runner", logging.WARNING, __file__, 1, "%s [bold]can't be read", (EVIL,), None)
    terminal.TerminalHandler().emit(record)
    terminal.say(EVIL, style="bold")
    assert told.getvalue() == f"warning: {SHOWN} [bold]can't be read\n{SHOWN}\n"
    assert PrintableFormatter("%(message)s").format(record) == f"{SHOWN} [bold]can't be read"


def test_so_are_those_in_a_summary() -> None:
    result = make_result({"status": "failed", "failure": {"message": f"{EVIL} is missing"}})
    text = summarize(result, EVIL, EVIL)
    assert text.count(SHOWN) == 3
    assert printable(text) == text
