"""The settings of a report's runs: what differs, and all of them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from wsegpc_jax.report.markup import Markup, join, tag
from wsegpc_jax.report.records import Stage

# Entries of a config that tell nothing of what was trained.
_NOT_SHOWN = ("data.how_to_get",)


def settings(stages: Sequence[Stage]) -> Markup:
  """What differs between the configs, and each of them whole."""
  flat = {s.name: _flat(s.config) for s in stages if s.config is not None}
  if not flat:
    return tag("p", "No config is known.", class_="missing")
  parts = []
  if len(flat) > 1:
    keys = dict.fromkeys(key for entries in flat.values() for key in entries)
    differing = [
      key
      for key in keys
      if len({entries.get(key, "not set") for entries in flat.values()}) > 1
      and key not in _NOT_SHOWN
    ]
    if differing:
      head = [tag("th", "Field", scope="col")]
      head += [tag("th", name, scope="col", class_="text") for name in flat]
      rows = [
        tag(
          "tr",
          tag("th", tag("code", key), scope="row"),
          *(
            tag("td", tag("code", e.get(key, "not set")), class_="text")
            for e in flat.values()
          ),
        )
        for key in differing
      ]
      table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))
      parts += [
        tag("p", "The fields in which the runs differ:"),
        tag(
          "div",
          table,
          class_="scroll",
          tabindex=0,
          role="region",
          aria_label="Differing settings",
        ),
      ]
    else:
      parts.append(tag("p", "The runs have the same settings."))
  for stage in stages:
    if stage.config is None:
      continue
    facts = {"workdir": stage.workdir, **stage.facts}
    rows = [
      join([tag("dt", key), tag("dd", value)])
      for key, value in facts.items()
      if value
    ]
    text = json.dumps(stage.config, indent=2, ensure_ascii=False)
    parts.append(
      tag(
        "details",
        tag("summary", f"{stage.name}: the whole config"),
        tag("dl", *rows),
        tag("pre", text, tabindex=0),
      )
    )
  return join(parts)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False)
  return flat
