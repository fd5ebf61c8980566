"""Every subject of scripts/benchmark.py is there and answers --help."""

import pytest

from scripts import benchmark


@pytest.mark.parametrize("subject", benchmark.SUBJECTS)
def test_every_subject_answers_help(subject, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main([subject, "--help"])
    assert ended.value.code == 0
    assert "--help" in capsys.readouterr().out
