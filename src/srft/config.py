"""The whole recipe as one typed object, read from YAML and ``key=value`` overrides."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from srft.data.data_config import DataConfig
from srft.environments.environment_config import EnvironmentConfig
from srft.errors import ConfigError, did_you_mean
from srft.evaluation.evaluation_config import EvaluationConfig
from srft.model.model_config import ModelConfig
from srft.objective.switches import Switches
from srft.parallel.parallel_config import ParallelConfig
from srft.rewards.reward_config import RewardConfig, written_out
from srft.rollout.rollout_config import RolloutConfig
from srft.secrets import redact_values
from srft.section import Section
from srft.trainer.alarms import BUILT_IN, Alarm, with_built_in
from srft.trainer.teacher_config import TeacherConfig
from srft.trainer.train_config import RunConfig, Stage, TrainConfig

_TYPE = re.compile(r"(?:str|int|float|bool|none|(?:list|tuple|dict)\[.*\])")


class SRFTConfig(Section):
    """Everything that defines a run. ``srft train recipe.yaml key=value`` and
    ``SRFTTrainer(args=SRFTConfig(...))`` read the same fields."""

    def __init__(self, /, *recipe: Any, where_: str = "SRFTConfig", **values: Any) -> None:
        """Raises ConfigError for an unknown key (with the nearest name) and a wrong value."""
        if recipe:
            raise ConfigError(
                f"{where_}: takes its sections by name: SRFTConfig(method='grpo', train={{'steps': 50}}), or "
                "SRFTConfig(**sections) for a dict of them; srft.config.load_config(path) reads a file"
            )
        try:
            super().__init__(**values)
        except ValidationError as error:
            explained = "; ".join(_explain(item) for item in error.errors())
            raise ConfigError(f"{where_}: {explained}") from error

    method: str = Field("srft", description="How to train: a name from the table of methods.")
    objective: Switches = Field(
        default_factory=Switches, description="Switches that differ from the method's own defaults."
    )
    stages: list[Stage] = Field(
        default_factory=list,
        description="Several methods one after another; then `method` is not read.",
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="The policy.")
    data: DataConfig = Field(default_factory=DataConfig, description="Prompts and demonstrations.")
    reward: RewardConfig = Field(default_factory=RewardConfig, description="The verifier.")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="Sampling.")
    environment: EnvironmentConfig = Field(
        default_factory=EnvironmentConfig, description="Tools and environments."
    )
    teacher: TeacherConfig = Field(
        default_factory=TeacherConfig, description="The teacher of methods that distil."
    )
    train: TrainConfig = Field(default_factory=TrainConfig, description="Optimisation.")
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="Evaluation."
    )
    parallel: ParallelConfig = Field(
        default_factory=ParallelConfig, description="Training over several processes."
    )
    run: RunConfig = Field(default_factory=RunConfig, description="The run directory.")
    alarms: dict[str, Alarm] = Field(
        default_factory=lambda: {name: alarm.model_copy() for name, alarm in BUILT_IN.items()},
        description="Metrics to watch, by rule: keys of a built-in rule's name change it "
        "(docs/reliability.md), any other name adds a rule.",
    )

    @field_validator("alarms", mode="before")
    @classmethod
    def _over_the_built_in(cls, value: Any) -> Any:
        return with_built_in(value)

    @model_validator(mode="after")
    def _sections_agree(self) -> SRFTConfig:
        if self.stages and self.model_fields_set & {"method", "objective"}:
            raise ValueError(
                "stages are given together with method or objective; with stages, put both inside each stage"
            )
        if self.stages and "steps" in self.train.model_fields_set:
            total = sum(stage.steps for stage in self.stages)
            if self.train.steps != total:
                raise ValueError(
                    f"train.steps is {self.train.steps} but the stages add up to {total}; "
                    "leave train.steps out"
                )
        if self.rollout.temperature == 0:
            raise ValueError(
                "rollout.temperature is 0 (greedy): all rollouts of a group would be the same; use 1.0"
            )
        return self

    def rechecked(self) -> SRFTConfig:
        """The same recipe, with the settings that were assigned since it was made looked at as well.

        Raises:
            ConfigError: one of them is wrong, or they do not agree.
        """
        return parse_config(_given(self), "args")

    @property
    def resolved_stages(self) -> list[Stage]:
        """The stages, or the one method as a single stage."""
        if self.stages:
            return self.stages
        return [Stage(method=self.method, steps=self.train.steps, objective=self.objective)]

    @property
    def total_steps(self) -> int:
        """Planned training steps over all stages."""
        return sum(stage.steps for stage in self.resolved_stages)

    def to_yaml(self, redacted: bool = False) -> str:
        """The resolved recipe; reading it back gives an equal object. ``redacted``: for the eyes of
        others, with secrets (a key among the arguments of a reward function, say) replaced."""
        values = self.model_dump(mode="json")
        # Switches that were not set are the method's own; writing them out would set them.
        if self.stages:
            del values["method"], values["objective"], values["train"]["steps"]
            for stage, dumped in zip(self.stages, values["stages"], strict=True):
                dumped["objective"] = stage.objective.model_dump(mode="json", exclude_unset=True)
        else:
            del values["stages"]
            values["objective"] = self.objective.model_dump(mode="json", exclude_unset=True)
        changed = [name for name, alarm in self.alarms.items() if alarm != BUILT_IN.get(name)]
        values["alarms"] = {name: values["alarms"][name] for name in changed}
        if redacted:
            values = redact_values(values)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _given(value: Any) -> Any:
    """A section as the mapping that it could have been made of: the settings that were given or changed,
    also inside sections that were not."""
    if isinstance(value, dict):
        return {key: _given(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_given(item) for item in value]
    if not isinstance(value, BaseModel):
        return value
    given = {}
    for name, field in type(value).model_fields.items():
        setting = getattr(value, name)
        inside = _given(setting)
        changed = setting != field.get_default(call_default_factory=True, validated_data={})
        if changed or name in value.model_fields_set or (isinstance(setting, BaseModel) and inside):
            given[name] = inside
    return given


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> SRFTConfig:
    """Reads a recipe and applies ``section.key=value`` overrides (values parsed as YAML).

    Raises:
        ConfigError: no such file, not YAML, an unknown key (with the nearest name), a wrong value.
    """
    recipe = _read_yaml(Path(path)) if path is not None else {}
    where = str(path) if path else "overrides"
    # `reward=exact` and `reward.timeout_s=9` may stand in either order.
    for key, value, text in sorted(map(_override, overrides), key=lambda o: o[0] != ["reward"]):
        try:
            _apply(recipe, key, value)
        except ConfigError as error:
            raise ConfigError(f"override {text[:200]!r}: {error}") from None
    try:
        # What cannot be written as YAML (half a surrogate pair, say) could not be resumed from.
        yaml.safe_dump(recipe, allow_unicode=True).encode()
        json.dumps(recipe, default=str)  # nor what holds itself, or is nested too deeply
    except _UNREADABLE as error:
        raise ConfigError(f"{where}: {_first_lines(error)}") from error
    return parse_config(recipe, where)


_UNREADABLE = (yaml.YAMLError, ValueError, TypeError, RecursionError)
"""What YAML raises: UnicodeError and numbers of too many digits are ValueErrors."""


def _override(text: str) -> tuple[list[str], Any, str]:
    """The parts of the key, the value and the text of one ``section.key=value``; a number is a place in a
    list, ``stages.0.steps=5``. Raises ConfigError, naming it."""
    key, sign, written = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"override {text!r}: write it as key=value, such as train.steps=50")
    parts = re.sub(r"\[(\w+)\]", r".\1", key.strip()).split(".")
    if written[:1] not in "\"'[{" and _COMMENT.search(written):
        return parts, written.strip(), text  # `rule #1` is no comment in a line of its own
    try:
        value = yaml.load(written, _UniqueKeys)
    except _UNREADABLE as error:
        raise ConfigError(
            f"override {text[:200]!r}: the value is not YAML: {_first_lines(error)}"
        ) from error
    if isinstance(value, (dict, list)) and written.strip()[:1] not in "[{":
        value = written.strip()  # `Q: {prompt}` is a template
    return parts, value, text


_COMMENT = re.compile(r"(?:^|\s)#")


def _apply(recipe: dict[str, Any], key: list[str], value: Any) -> None:
    """Sets a key of ``recipe``: of a section those of its settings that are named, anything else as a whole.

    Raises:
        ConfigError: what is there has no such place.
    """
    names_rewards = isinstance(value, Mapping) and value.keys() & {"name", "function", "rewards"}
    if key[0] == "reward" and (len(key) > 1 or isinstance(value, Mapping)):
        recipe["reward"] = written_out(recipe.get("reward"))
    place: Any = recipe
    for depth, part in enumerate(key):
        name, last = ".".join(key[:depth]), depth + 1 == len(key)
        at: Any = part
        if isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                raise ConfigError(f"{name} is a list of {len(place)}, whose places count from 0")
            at = int(part)
        elif not isinstance(place, dict):
            raise ConfigError(
                f"{name} is {str(place)[:80]!r}, which has no parts; set {name} as a whole"
            )
        there = place[at] if isinstance(place, list) else place.get(at)
        if last:
            place[at] = value if names_rewards else _merged(there, value, key)
        else:
            # Copied: what an alias stands for in YAML is its anchor's very object.
            place[at] = place = copy.copy(there) if there is not None else {}


def _merged(old: Any, new: Any, key: Sequence[str]) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict) or not _is_section(key):
        return new
    return old | {name: _merged(old.get(name), value, [*key, name]) for name, value in new.items()}


def _is_section(key: Sequence[str]) -> bool:
    """Whether the key is of a section, whose settings are set one by one, and not of one setting: also one
    in a list, and one of several that have names (alarms), as all of these together."""
    kinds: list[Any] = [SRFTConfig]
    for part in key:
        kinds = [inner for kind in kinds for inner in _kinds_at(kind, part)]
    return any(
        _is_model(kind) or (get_origin(kind) is dict and _is_model(get_args(kind)[1]))
        for kind in kinds
    )


def _kinds_at(kind: Any, part: str) -> tuple[Any, ...]:
    """The types that may stand at ``part`` of a value of the type ``kind``."""
    inside: Any = None
    if _is_model(kind):
        field = kind.model_fields.get(part)
        inside = None if field is None else field.annotation
    elif get_origin(kind) in (list, tuple) and part.isdecimal():
        inside = get_args(kind)[0]
    elif get_origin(kind) is dict:
        inside = get_args(kind)[1]
    return get_args(inside) if get_origin(inside) in (Union, UnionType) else (inside,)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _first_lines(error: BaseException) -> str:
    """The part of a message that says what is wrong."""
    lines = str(error).splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:2])[:500]


def parse_config(values: Any, where: str = "config") -> SRFTConfig:
    """A dict into a config, with errors that name the key, the problem and the fix."""
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where}: a recipe is a mapping of sections, not {type(values).__name__}"
        )
    return SRFTConfig(where_=where, **{str(key): value for key, value in values.items()})


def section(name: str, values: Any) -> Any:
    """One section of a recipe alone, from the values that the command line gives.

    Raises:
        ConfigError: a wrong value.
    """
    kind = SRFTConfig.model_fields[name].annotation
    assert isinstance(kind, type) and issubclass(kind, BaseModel)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        told = (_explain(item, kind) for item in error.errors())
        raise ConfigError("; ".join(f"{name}.{text}" for text in told)) from error


def section_from(name: str, overrides: Sequence[str]) -> Any:
    """The same from ``key=value`` texts, such as ``vllm.dtype=bfloat16`` for ``rollout``.

    Raises:
        ConfigError: not of that form, an unknown key, a wrong value.
    """
    full = load_config(None, [f"{name}.{override}" for override in overrides])
    return getattr(full, name)


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe types alone, without dates and with 1e-6 as a number. Keys are text (also ``on``, ``no``);
    one that is given twice is an error, where YAML would keep the last."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the class above
        first: [item for item in items if not item[0].endswith(":timestamp")]
        for first, items in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                key.tag = "tag:yaml.org,2002:str"
            line = key.start_mark.line + 1
            if key.value != "<<" and isinstance(key.value, str):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None,
                        None,
                        f"{key.value!r} is given twice, in lines {seen[key.value]} and {line}; put "
                        "everything under one",
                    )
                seen[key.value] = line
        return super().construct_mapping(node, deep)


_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.yaml")]
        raise ConfigError(f"{path}: no such recipe{did_you_mean(path.name, beside)}")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
        wrong = raw.find(0)
    except UnicodeDecodeError as error:
        text, wrong = "", error.start
    if wrong >= 0:
        kind = _encoding(raw)
        raise ConfigError(
            f"{path}: is not UTF-8 (byte 0x{raw[wrong]:02x} at {wrong + 1}), probably {kind}. "
            f"Convert it: iconv -f {kind} -t UTF-8 {path.name} > new{path.suffix}"
        )
    try:
        values = yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: a recipe is a mapping of sections, not a {type(values).__name__}"
        )
    return values


def _encoding(raw: bytes) -> str:
    """What a recipe that is not UTF-8 is probably written in, as iconv calls it."""
    wide = {
        b"\xff\xfe\0\0": "UTF-32",
        b"\0\0\xfe\xff": "UTF-32",
        b"\xff\xfe": "UTF-16",
        b"\xfe\xff": "UTF-16",
    }
    marked = [name for mark, name in wide.items() if raw.startswith(mark)]
    if marked or 0 not in raw:
        return marked[0] if marked else "CP1252"
    return "UTF-16BE" if raw[:1] == b"\0" else "UTF-16LE"


def _explain(item: Any, root: type[BaseModel] | None = None) -> str:
    """One of pydantic's errors in a line: which key of ``root`` (the recipe), what is wrong, the fix."""
    root = root or SRFTConfig
    where = item["loc"]
    # Where a setting has several types, pydantic adds the one it tried: data.train.list[str].
    named = where[:-1] if len(where) > 1 and _TYPE.fullmatch(str(where[-1])) else where
    key = ".".join(str(part) for part in named)
    model = _model_at(root, where[:-1])
    if item["type"] == "extra_forbidden":
        known = f"; known here: {', '.join(sorted(model.model_fields))}"
        sections = {name: field.annotation for name, field in root.model_fields.items()}
        inside = [
            f"{name}.{key}"
            for name, section in sections.items()
            if key in getattr(section, "model_fields", ())
        ]
        if inside and model is root:
            return f"{key}: unknown key; did you mean {' or '.join(map(repr, inside))}?"
        hint = did_you_mean(str(where[-1]), model.model_fields, known, cutoff=0.5)
        return f"{key}: unknown key{hint}"
    if where[-1:] == ("[key]",):
        allowed = re.findall(r"'([^']+)'", str(item["msg"]))
        known = f"; known here: {', '.join(allowed)}"
        return f"{key.removesuffix('.[key]')}: unknown key{did_you_mean(str(where[-2]), allowed, known)}"
    message = str(item["msg"]).removeprefix("Value error, ")
    given = item["input"]
    if item["type"] == "model_type":
        first = next(iter(_model_at(root, where).model_fields))
        told = given if isinstance(given, str) or type(given) is int else "..."
        message = f"is a section with its own settings; write {key}: {{{first}: {told}}}"
    elif item["type"] in ("tuple_type", "list_type"):
        field = model.model_fields.get(str(where[-1]))  # None: one of several types it may have
        default = field and field.get_default(call_default_factory=True)
        message = f"is not a list; write one, such as {list(default or [given])}"
    elif item["type"] == "dict_type":
        message = "is not a mapping; write {name: value}"
    return f"{key}: {message}" if key else message


def _model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel]:
    """The (nested) model that ``location`` points to."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
                break
    return model
