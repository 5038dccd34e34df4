"""One exception tree, whose members are also what callers of the ecosystem catch."""

import pytest

import phonograph
from phonograph import errors


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConfigError", ValueError),
        ("CheckpointError", OSError),
        ("AudioError", ValueError),
        ("StreamError", Exception),
        ("TokenFileError", Exception),
        ("DivergedError", Exception),
        ("OutputError", OSError),
        ("MissingExtraError", ImportError),
    ],
)
def test_tree(name: str, builtin: type[Exception]) -> None:
    error = getattr(errors, name)
    assert issubclass(error, errors.PhonographError)
    assert issubclass(error, builtin)


def test_all_are_listed() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert set(errors.__all__) == defined
    assert phonograph.PhonographError is errors.PhonographError


def test_a_missing_extra_says_what_to_run() -> None:
    error = errors.MissingExtraError("Plotting", "matplotlib", "plot")
    assert str(error) == "Plotting needs the package matplotlib, which is not installed; run: pip install 'phonograph[plot]'"


def test_messages_of_os_errors_are_whole() -> None:
    """An OSError of one argument prints it; two would become an errno."""
    assert str(errors.CheckpointError("expected a, got b; do c")) == "expected a, got b; do c"
    assert str(errors.OutputError("expected a, got b; do c")) == "expected a, got b; do c"
