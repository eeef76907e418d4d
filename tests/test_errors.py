"""The one-line errors that the CLI prints."""

from sffbench.errors import InputError, unknown


def test_an_unknown_name_gets_the_nearest_one_and_the_whole_list():
    error = unknown("dataset", "etth3", ["ETTh1", "Weather"])
    assert isinstance(error, InputError)
    assert isinstance(error, ValueError)
    assert str(error) == (
        "unknown dataset 'etth3'; did you mean 'ETTh1'? (allowed: ETTh1, Weather)"
    )


def test_a_name_like_no_other_gets_no_guess():
    assert "did you mean" not in str(unknown("dataset", "qqqq", ["ETTh1", "Weather"]))
