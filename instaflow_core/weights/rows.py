"""Which row of `rules` a checkpoint is sampled by: what the caller says, else what the source says of itself, else what
it is called, where that is a name no other models have. Nothing is guessed in silence: `rule_is_assumed` is told.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..rules import RULES, Rule, rule_of
from .diffusers_folder import read_json
from .files import Config, FormatError, Metadata
from .metadata import RULE_ASSUMED_KEY, RULE_KEY, SAYABLE, Said, names_of

CALLER = "the caller"
_OF_A_ROW = (RULE_KEY, RULE_ASSUMED_KEY, "instaflow.stage", "instaflow.guidance")


@dataclass(frozen=True)
class Told:
    """What the caller says of a source.

    prediction: one of SAYABLE, whatever the source says; None takes its word.
    rule: the row it is sampled by; None takes what is found.
    """

    prediction: str | None = None
    rule: Rule | None = None


def told(prediction: str | None, rule: str | None) -> Told:
    """The caller's words; ValueError where they are unknown or contradict each other."""
    if prediction is not None and prediction not in SAYABLE:
        raise ValueError(f"Unknown prediction {prediction!r}; expected one of {', '.join(SAYABLE)}.")
    row = None if rule is None else rule_of(rule)
    if row and prediction not in (None, row.prediction):
        raise ValueError(
            f"The rule {row.name} is for a UNet that predicts {row.prediction}, and the prediction is said to be "
            f"{prediction}. Say one of the two, or the same with both."
        )
    return Told(prediction, row)


@dataclass(frozen=True)
class Found:
    """A row, who says that it is this one, in words, and whether that is only what a source is called."""

    rule: Rule
    by: str
    assumed: bool = False


def found_in_file(path: Path) -> Found | None:
    """The row of a single file by its name, or by that of its repository in a hub cache."""
    return _called((path.name, path.resolve().name, *_repositories(path)))


def found_in_folder(root: Path) -> Found | None:
    """The row of a diffusers folder by its scheduler, else by its name."""
    config = root / "scheduler" / "scheduler_config.json"
    scheduler = read_json(config) if config.is_file() else {}
    rule = next((rule for rule in RULES.values() if rule.named and _samples(rule, scheduler)), None)
    if rule:
        return Found(rule, f"scheduler_config.json, which names a {scheduler['_class_name']}")
    return _called(names_of(root))


def settle_rule(
    metadata: Metadata, told: Told, said: Said | None, found: Found | None, zero_snr: bool, name: str
) -> Said | None:
    """Write the row of a source into its metadata, as far as it has one.

    Args:
        metadata: the source's own.
        said: what the UNet predicts by the caller's or the source's word.
        found: the row by what the source is, its own metadata aside.
        zero_snr: whether the source says that its noise schedule ends in zero terminal SNR.
        name: what messages call the source.

    Returns what the UNet predicts, by the row where nobody else says it.

    Raises:
        FormatError: the caller's row is not for such a source, or the metadata's is unknown or none for it.
    """
    if RULE_KEY in metadata:
        found = _own(metadata, said, name)
    if told.prediction and not told.rule:
        if RULE_KEY in metadata:
            _forget(metadata)
        return said
    if told.rule:
        _check_zero_snr(told.rule, zero_snr, name)
        if not told.prediction:
            _check_fits(told.rule, said, found if RULE_KEY in metadata else None, metadata, name)
        found = Found(told.rule, f"{CALLER}, by the rule {told.rule.name}")
    elif found is None or zero_snr or (said and said.prediction != found.rule.prediction):
        return said
    _write(metadata, found, bool(told.rule))
    return Said(found.rule.prediction, found.by) if told.rule or said is None else said


def _write(metadata: Metadata, found: Found, is_told: bool) -> None:
    described = {"instaflow.stage": found.rule.stage, "instaflow.guidance": str(found.rule.guidance)}
    if is_told:
        _forget(metadata)
        metadata |= described
    else:
        metadata |= described | metadata
    if found.rule.few_step:
        metadata[RULE_KEY] = found.rule.name
    if found.assumed:
        metadata[RULE_ASSUMED_KEY] = "true"


def _forget(metadata: Metadata) -> None:
    for key in _OF_A_ROW:
        metadata.pop(key, None)


def _own(metadata: Metadata, said: Said | None, name: str) -> Found:
    word = metadata[RULE_KEY]
    rule = RULES.get(word)
    if rule is None or not rule.few_step:
        known = ", ".join(rule.name for rule in RULES.values() if rule.few_step)
        raise FormatError(f"The metadata {RULE_KEY} of {name} is {word[:40]!r}", known, "Get the file again.")
    if said and said.by != CALLER and said.prediction != rule.prediction:
        raise FormatError(
            f"The metadata {RULE_KEY} of {name} is {word!r}, and its UNet predicts {said.prediction} by {said.by}",
            f"one that predicts {rule.prediction}",
            "Get the file again.",
        )
    return Found(rule, f"{RULE_KEY} in the file", RULE_ASSUMED_KEY in metadata)


def _check_zero_snr(row: Rule, zero_snr: bool, name: str) -> None:
    if zero_snr and row.prediction == "epsilon":
        raise FormatError(
            f"{name} says that its noise schedule ends in zero terminal SNR",
            f"Stable Diffusion's own noise schedule, which the rule {row.name} is for",
            "Leave the rule out.",
        )


def _check_fits(row: Rule, said: Said | None, own: Found | None, metadata: Metadata, name: str) -> None:
    """Raise FormatError where the source says itself that it is something else than the row the caller says."""
    advice = f"Leave the rule out; where you know better than the file, say that it predicts {row.prediction}, too."
    if said and said.prediction != row.prediction:
        raise FormatError(
            f"{name} predicts {said.prediction} (said by {said.by})",
            f"a UNet that predicts {row.prediction}, which the rule {row.name} is for",
            advice,
        )
    if own and own.rule is not row and not own.assumed:
        raise FormatError(f"{name} says that its rule is {own.rule.name}", f"a model of the rule {row.name}", advice)
    stage = metadata.get("instaflow.stage", row.stage)
    if row.prediction == "velocity" and stage not in (row.stage, "unknown"):
        raise FormatError(f"{name} says that it is a {stage} model", f"a model of the rule {row.name}", advice)


def _samples(rule: Rule, scheduler: Config) -> bool:
    """Whether a scheduler is the row's; what its config leaves out is as there."""
    if scheduler.get("_class_name") != rule.scheduler["_class_name"]:
        return False
    expected = {"beta_schedule": rule.diffusion.betas if rule.diffusion else "scaled_linear"} | dict(rule.scheduler)
    return all(scheduler.get(key, value) == value for key, value in expected.items())


def _called(names: Iterable[str]) -> Found | None:
    plain = [re.sub("[^a-z0-9]+", "-", name.lower()) for name in names]
    rows = {
        rule.name: (rule, word)
        for rule in RULES.values()
        for word in rule.called
        if any(re.search(rf"(^|-){word}(-|$)", name) for name in plain)
    }
    if len(rows) != 1:
        return None
    rule, word = next(iter(rows.values()))
    return Found(rule, f"its name, which has {word} in it", assumed=True)


def _repositories(path: Path) -> list[str]:
    """The repository's name where a file lies in a hub cache (models--OWNER--NAME/snapshots/HASH)."""
    return [above.parent.name for above in path.absolute().parents if above.name == "snapshots"]
