"""The page of devices says what the package does."""

from __future__ import annotations

from support.devices_page import PAGE, page


def test_the_table_is_the_data() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "run: python tests/support/devices_page.py"
