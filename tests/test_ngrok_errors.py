"""ngrok's words, told apart: the exception's kind comes first, then what the agent said."""

from __future__ import annotations

import pytest

from slipway import ngrok_errors
from tests.conftest import AUTHTOKEN as TOKEN

DIAL = "PyngrokNgrokError\nThe ngrok process errored on start: dial tcp 3.1.2.3:443: connect: connection timed out."


@pytest.mark.parametrize(
    ("said", "exit_code"),
    [
        (DIAL, 39),
        ("PyngrokNgrokError\nfailed to open /home/ana/install/ngrok.yml", 40),
        ("PyngrokNgrokError\nsilent failure", 40),
        ("PyngrokNgrokURLError\nngrok client exception, URLError: timed out", 36),
        ("TimeoutError\ntimed out", 36),
        ("PyngrokNgrokInstallError\nAn error occurred while downloading ngrok from x: timed out", 38),
        ("something ERR_NGROK_9999 odd", 40),
    ],
)
def test_each_error_gets_its_own_row(said: str, exit_code: int) -> None:
    assert ngrok_errors.explain(said).exit_code == exit_code


def test_every_row_has_an_exit_code_of_its_own() -> None:
    codes = [row[2] for row in (*ngrok_errors.ROWS.values(), ngrok_errors.SILENT, ngrok_errors.UNKNOWN)]
    assert len(set(codes)) == len(codes)


def test_an_authtoken_is_redacted_wherever_it_is_echoed() -> None:
    text = f"odd failure {TOKEN} and Your authtoken: half{TOKEN[:9]}"
    assert TOKEN not in str(ngrok_errors.explain(text, TOKEN))
    assert TOKEN[:9] not in str(ngrok_errors.explain(text, TOKEN))


def test_a_character_that_is_dropped_hides_no_authtoken_and_an_endless_code_is_cut() -> None:
    said = ngrok_errors.explain(f"odd {TOKEN[:9]}\0{TOKEN[9:]} ERR_NGROK_{'9' * 3000}", TOKEN)
    assert TOKEN not in str(said)
    assert len(str(said)) < 700
