"""YAML files that a user writes. Imports nothing slow."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which PyYAML silently keeps the last one."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.flattened: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Look before `<<` is replaced by the keys that it brings, which the mapping's own ones may replace."""
        found = set()
        for key, _ in node.value if node not in self.flattened else ():
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in found:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands there twice", key.start_mark
                    )
                found.add(key.value)
        self.flattened.add(node)
        super().flatten_mapping(node)


def parse_yaml(text: str) -> Any:
    """What a YAML text says, plain values alone. Raises yaml.YAMLError where it is none, or has a key twice."""
    return yaml.load(text, Loader=_Loader)
