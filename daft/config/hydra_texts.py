"""How Hydra reads what people write: files are checked first, and names stay as they are spelled.

Importing this module puts both in the place of Hydra's own; each process that composes does, by the plugins.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.override_parser import overrides_parser, overrides_visitor
from hydra.core.override_parser.types import RangeSweep
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideParser import OverrideParser
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from daft.config import texts, yaml_files
from daft.config.schema import Config

GLOBAL = "_global_"

MAX_VALUES = 100_000
"""Of one range on the command line."""


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's source of that name; it says where a file is wrong, and keeps names that look like numbers."""

    latest: Path | None = None
    """The file that was loaded last: where defaults go in a circle, one of the circle."""

    def load_config(self, config_path: str) -> ConfigResult:
        """The content of a file; raises UserError if it is no mapping in YAML."""
        name = self._normalize_file_name(config_path)
        file = Path(os.path.realpath(os.path.join(self.path, name)))
        if not file.exists():
            return super().load_config(config_path)  # which says so
        text = yaml_files.read(file)
        with yaml_files.errors_of(file):
            header = self._get_header_dict(text[:512])
            package = header.get("package") or (Path(name).parts[0] if Path(name).parts[1:] else GLOBAL)
            content = _content(text, package)
            content = {} if content is None else content
            if not isinstance(content, dict):
                raise TypeError(f"{type(content).__name__}, not keys with values as in name: pets")
            _require_defaults(content.get("defaults", []))
            FileConfigSource.latest = file
            config, path = OmegaConf.create(content), f"file://{self.path}"
            return ConfigResult(provider=self.provider, path=path, config=config, header=header)


@lru_cache(maxsize=256)  # a sweep composes each of its runs from the same files
def _content(text: str, package: str) -> Any:
    """What a file says whose keys are those of this package; not to be changed."""
    kind = Config if package == GLOBAL else texts.at(package, Config)
    return yaml_files.construct(get_yaml_loader()(text), kind)


def _require_defaults(entries: Any) -> None:
    """Raise ValueError unless this is a list of options, as Hydra wants it."""
    if not isinstance(entries, list):
        raise ValueError(f"defaults: {entries!r} is no list, as in [base/breeds@_here_, _self_]")
    for entry in entries:
        pair = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else ("", entry)
        options = pair[1] if isinstance(pair[1], list) and pair[0] else [pair[1]]
        if not all(isinstance(option, str) or (option is None and pair[0]) for option in options):
            raise ValueError(f"defaults: {entry!r} is no option: write a name, or group: name")


class _Visitor(overrides_visitor.HydraOverrideVisitor):
    """Hydra's reader of the command line, but a key of a dict is text: {2018: …, 1e3: …, null: …}.

    A key that stands there twice, and a range without end in sight, are refused.
    """

    def visitDictKey(self, ctx: OverrideParser.DictKeyContext) -> Any:  # noqa: N802
        key = super().visitDictKey(ctx)
        return key if isinstance(key, str) else ctx.getText().strip()

    def visitDictContainer(self, ctx: OverrideParser.DictContainerContext) -> Any:  # noqa: N802
        items = [ctx.getChild(i) for i in range(1, ctx.getChildCount() - 1, 2)]
        pairs = [self.visitDictKeyValuePair(item) for item in items if item is not None]
        names = [name for name, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise HydraException(f"while evaluating '{ctx.getText()}': the key {twice!r} stands there twice")
        return dict(pairs)

    def visitFunction(self, ctx: OverrideParser.FunctionContext) -> Any:  # noqa: N802
        value = super().visitFunction(ctx)
        if isinstance(value, RangeSweep) and value.step:
            count = ((value.stop or 0) - (value.start or 0)) / value.step
            if not count <= MAX_VALUES:
                text = ctx.getText()
                raise HydraException(
                    f"while evaluating '{text}': {count:,.0f} values; {MAX_VALUES:,} are enough"
                )
        return value


SourcesRegistry.instance().types["file"] = FileConfigSource
overrides_parser.HydraOverrideVisitor = _Visitor
