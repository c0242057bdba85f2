"""Prints how many faults and bad inputs were tried; a run of all tests fails if the README claims more."""

import counting


def is_whole_run(config, session):
    """Whether every test was asked for, by no argument but options."""
    chosen = config.option.keyword or config.option.markexpr or getattr(config.option, "deselect", None)
    everything = config.args_source is not type(config.args_source).ARGS
    return everything and not chosen and not config.option.collectonly and not session.testsfailed


def pytest_sessionfinish(session, exitstatus):
    broken = []
    if is_whole_run(session.config, session) and exitstatus == 0:
        broken = counting.broken_promises(counting.tried, counting.promised(counting.README.read_text()))
        if broken:
            session.exitstatus = 1
    session.config.broken_promises = broken


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.write_line(counting.summary(counting.tried))
    for sentence in getattr(config, "broken_promises", []):
        terminalreporter.write_line(f"docs/reliability.md is wrong: {sentence}.", red=True)
