"""Progress and log: lines on the console, or events of a callback."""

import logging

from click.testing import CliRunner

from boom_ray.cli import main
from boom_ray.runtime import console as terminal
from boom_ray.runtime.progress import Progress, ProgressEvent, reported_to


def test_a_callback_gets_every_update_and_the_console_none(capsys):
    events: list[ProgressEvent] = []
    with reported_to(events.append), Progress() as progress:
        progress.update("bag-1", 1, 4, "loss 0.31")
        progress.update("bag-1", 2, 4)
    assert events == [ProgressEvent("bag-1", 1, 4, "loss 0.31"), ProgressEvent("bag-1", 2, 4)]
    assert capsys.readouterr().out == ""


def test_a_job_log_gets_a_line_every_five_seconds_and_the_last(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("boom_ray.runtime.progress.time.monotonic", lambda: clock[0])
    with Progress() as progress:
        for clock[0], completed in ((0.0, 1), (1.0, 2), (6.0, 3), (12.0, 3), (12.5, 4)):
            progress.update("bag-1", completed, 4)
    assert capsys.readouterr().out.splitlines() == ["bag-1  1/4", "bag-1  3/4", "bag-1  4/4"]


def test_the_command_line_shows_the_log_and_prefixes_warnings(capsys, caplog):
    caplog.set_level("INFO", logger="boom_ray")  # libraries change the level of the root logger
    restore = terminal.show_log()
    terminal.show_log()()
    logging.getLogger("boom_ray.merge").info("merged [bold]2[/bold] models")
    logging.getLogger("boom_ray.train").warning("the loss does not move")
    logging.getLogger("boom_ray.train").debug("hidden")
    restore()
    logging.getLogger("boom_ray.train").warning("after the command")
    assert capsys.readouterr().out == "merged [bold]2[/bold] models\nwarning: the loss does not move\n"
    assert caplog.messages == ["after the command"], "the log of the caller is as before"


def test_a_command_restores_the_log_of_its_caller(caplog):
    caplog.set_level("INFO", logger="boom_ray")
    for arguments in (["verify", "nowhere"], ["plan", "nowhere.yaml"]):
        assert CliRunner().invoke(main, arguments).exit_code == 1
        logging.getLogger("boom_ray").warning(arguments[0])
    assert caplog.messages == ["verify", "plan"]
