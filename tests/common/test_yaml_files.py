"""YAML files: a key that stands twice is refused, keys that `<<` brings may be replaced."""

import pytest
import yaml

from data_selection.common.yaml_files import parse_yaml

MERGED = """
usual: &usual {max_iter: 5, batch_size: 3}
methods:
  quick: &quick
    <<: *usual
    max_iter: 7
other:
  <<: *quick
  lr: 1
"""


def test_keys_that_a_merge_brings_may_be_replaced_at_any_depth():
    """`quick` is merged into `other` before it is made itself: it holds max_iter twice then."""
    found = parse_yaml(MERGED)
    assert found == yaml.safe_load(MERGED)
    assert found["methods"]["quick"] == {"max_iter": 7, "batch_size": 3}
    assert found["other"] == {"max_iter": 7, "batch_size": 3, "lr": 1}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "the key 'c' stands there twice"),
        ("<<: {a: 1, a: 2}", "the key 'a' stands there twice"),
        ("a: !!map b", "expected a mapping node"),
    ],
)
def test_what_is_wrong_is_an_error_of_yaml(text, told):
    with pytest.raises(yaml.YAMLError, match=told):
        parse_yaml(text)
