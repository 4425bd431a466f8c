"""The command line. Flags and YAML keys of ``inscape run`` are the fields of the study's ``Config``.

Exit codes: 0 done · 2 bad input (one line on stderr; a traceback only with ``--debug``) · 130 interrupted (resumable).
"""

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cyclopts import App, CycloptsError, Parameter
from pydantic import BaseModel, ValidationError, create_model
from rich.console import Console

from inscape import __version__
from inscape.errors import InputError

app = App(
    name="inscape",
    help="A workbench for what a language model knows.",
    version=__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(
        consume_multiple=True,  # --properties birth_year elevation
        negative_iterable=(),  # (an --empty-properties beside it would say nothing that leaving it out does not)
    ),
)
run_app = App(name="run", help="Run a study: tables, figures, summary.json and one report.html in a run folder.")
facts_app = App(name="facts", help="Facts tables, and language models trained on them.")
corpus_app = App(name="corpus", help="Text cleaned, counted and stored for training.")
tokenizer_app = App(name="tokenizer", help="Tokenizers fitted to a corpus.")
_GROUPS = {"corpus": corpus_app, "tokenizer": tokenizer_app}
for group in (run_app, facts_app, *_GROUPS.values()):
    app.command(group)

_Out = Annotated[
    Path | None, Parameter(name="--out", help="Run folder (default: runs/STUDY). The same command goes on there.")
]
_File = Annotated[
    Path | None, Parameter(name="--config", help="YAML file with fields of the study's config; flags win.")
]
_Smoke = Annotated[
    bool, Parameter(name="--smoke", negative="", help="The whole pipeline at the smallest sizes, in under a minute.")
]
_Quiet = Annotated[bool, Parameter(name="--quiet", negative="", help="No progress on stderr.")]


@app.command(name="list")
def list_(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Studies and worlds, one line each.

    Parameters
    ----------
    as_json: as JSON.
    """
    from inscape.data.worlds import WORLDS
    from inscape.studies import STUDIES

    studies: list[dict[str, str | None]] = [
        {"kind": "study", "name": s.name, "about": s.title, "paper": s.paper} for s in STUDIES.values()
    ]
    worlds: list[dict[str, str | None]] = [
        {"kind": "world", "name": name, "about": about, "paper": None} for name, about in WORLDS.items()
    ]
    if as_json:
        print(json.dumps([*studies, *worlds], indent=2))
        return
    for entry in [*studies, *worlds]:
        print(
            f"{entry['name']:20} {entry['kind']:6} {entry['about']}"
            + (f"  [{entry['paper']}]" if entry["paper"] else "")
        )


@app.command
def report(folder: Path, /) -> None:
    """Draw the figures and write report.html again from the tables of a run folder."""
    from inscape.studies import rebuild_report

    print(rebuild_report(folder))


@facts_app.command
def train(
    *,
    data: Path,
    out: Path,
    properties: tuple[str, ...] | None = None,
    limit: int | None = None,
    size: Literal["smoke", "demo", "standard", "facts"] = "facts",
    steps: int | None = None,
    width: int | None = None,
    layers: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    quiet: _Quiet = False,
) -> None:
    """Train a small LM on text made from a facts table, and save it as a Hugging Face folder.

    Parameters
    ----------
    data: folder or file of facts tables.
    out: the model's folder; the same command goes on after a kill.
    properties: names or Wikidata ids (default: all in the tables).
    limit: most entities per property, over all splits.
    size: recipe: smoke, demo, standard or facts.
    steps: optimizer steps, instead of the recipe's.
    width: dimensions of the residual stream, instead of the recipe's.
    layers: number of blocks, instead of the recipe's.
    seed: of the initial weights and the text.
    device: torch device.
    """
    from inscape.data.facts import load_facts
    from inscape.runs.progress import ProgressReporter
    from inscape.training.facts import train_facts_lm
    from inscape.training.sizes import training_of

    _refuse_impossible(out)
    facts = load_facts(data, properties or None, limit)
    config = training_of(size, seed, steps=steps, width=width, layers=layers, device=device)
    record = train_facts_lm(facts, config, out, progress=ProgressReporter(quiet))
    for name, accuracy in record["accuracy"].items():
        unseen = accuracy["comparisons_unseen"]
        compared = "" if unseen is None else f", {unseen:.1%} of comparisons never trained on"
        print(f"{name}: {accuracy['questions']:.1%} of questions right{compared}")
    print(out)


def _study_command(
    name: str, config_type: type[BaseModel], smoke: dict[str, Any], folder_name: str | None = None
) -> Callable[..., None]:
    def command(
        *,
        config: Annotated[Any, Parameter(name="*")] = None,
        out: _Out = None,
        file: _File = None,
        smoke_run: _Smoke = False,
        quiet: _Quiet = False,
    ) -> None:
        from inscape.runs import read_run
        from inscape.studies import run_study

        given = {} if config is None else {field: getattr(config, field) for field in config.model_fields_set}
        fields = {**(smoke if smoke_run else {}), **_from_yaml(file, config_type), **given}
        where = out or Path("runs") / (folder_name or name)
        _refuse_impossible(where)
        first = os.environ.get("RANK", "0") == "0"  # (of the processes of a launch)
        already = first and (where / "manifest.json").exists() and read_run(where).done
        folder = run_study(name, _validated(config_type, fields), where, quiet=quiet or not first)
        if already:
            print(f"inscape: {where} is done already; nothing was run", file=sys.stderr)
        if first:
            print(folder.folder / "report.html")

    command.__annotations__["config"] = Annotated[_flags(config_type) | None, Parameter(name="*")]
    return command


def _flags(config_type: type[BaseModel]) -> type[BaseModel]:
    """The config without the checks across fields: these come when the file's fields and the flags are put together."""
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in config_type.model_fields.items()}
    return create_model(config_type.__name__, __config__=config_type.model_config, **fields)


def _making_command(name: str, config_type: type[BaseModel], smoke: dict[str, Any]) -> Callable[..., None]:
    """As `_study_command`, with the YAML file as an argument: ``inscape pretrain CONFIG``."""
    run = _study_command(name, config_type, smoke, name.replace(" ", "-"))

    def command(
        file: Annotated[Path | None, Parameter(help="YAML file with fields of the config; flags win.")] = None,
        /,
        *,
        config: Annotated[Any, Parameter(name="*")] = None,
        out: _Out = None,
        smoke_run: _Smoke = False,
        quiet: _Quiet = False,
    ) -> None:
        run(config=config, out=out, file=file, smoke_run=smoke_run, quiet=quiet)

    command.__annotations__["config"] = Annotated[_flags(config_type) | None, Parameter(name="*")]
    return command


def _refuse_impossible(out: Path) -> None:
    """InputError for a folder that cannot be there, before any work is done for it."""
    try:
        (out / "manifest.json").stat()
    except FileNotFoundError:
        pass
    except OSError as error:  # (a name too long, a file among the parents, a parent that may not be searched)
        raise InputError(f"--out {out}: {error.strerror}; expected a folder, new or there already") from error


def _from_yaml(file: Path | None, config_type: type[BaseModel]) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file}: not YAML ({' '.join(str(error).split())})") from error
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise InputError(f"--config {file}: expected fields of the config (key: value), found {type(fields).__name__}")
    if unknown := [str(key) for key in fields if key not in config_type.model_fields]:
        raise InputError(f"--config {file}: no field {unknown[0]!r}; fields are {', '.join(config_type.model_fields)}")
    return fields


def _validated(config_type: type[BaseModel], fields: dict[str, Any]) -> BaseModel:
    try:
        return config_type(**fields)
    except ValidationError as error:
        raise InputError(_first_problem(error)) from error


def _first_problem(error: ValidationError) -> str:
    problems = error.errors()
    # Where a field takes several types, each of them complains: one that the value was meant for says more than "no text".
    first = next((one for one in problems if not one["type"].endswith("_type")), problems[0])
    where = ".".join(str(part) for part in first["loc"] if "[" not in str(part)) or "config"
    return f"{where}: {first['msg']} (found {first.get('input')!r})"


@functools.cache
def _register_studies() -> None:
    """Once per process: a name can be registered only once. Not on import, which the studies would make slow."""
    from inscape.studies import COMMANDS, STUDIES
    from inscape.training.plan import plan_command

    app.command(plan_command, name="plan")
    for making in COMMANDS.values():
        *parent, name = making.name.split()
        (_GROUPS[parent[0]] if parent else app).command(
            _making_command(making.name, making.config, dict(making.smoke)), name=name, help=f"{making.title}."
        )
    for study in STUDIES.values():
        run_app.command(
            _study_command(study.name, study.config, dict(study.smoke)),
            name=study.name,
            help=f"{study.title}. {study.paper}.",
        )
    tracing = STUDIES["causal-tracing"]
    app.command(
        _study_command(tracing.name, tracing.config, dict(tracing.smoke), "trace"),
        name="trace",
        help=f"Which states carry the answers to PROMPTS: `run {tracing.name}` by its short name. {tracing.paper}.",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: parse, run, and turn what went wrong into an exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    sys.exit(_exit_code(tokens, debug))


def _exit_code(tokens: list[str], debug: bool) -> int:
    if "--quiet" in tokens:
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()
        _register_studies()
        app(tokens, exit_on_error=False, print_error=False, console=Console())
    except (InputError, CycloptsError, ValidationError) as error:
        if debug:
            raise
        # The parser wraps what a study's Config refuses in its own error, with pydantic's many lines and link in it.
        refused = error.__cause__ if isinstance(error, CycloptsError) else error
        message = _first_problem(refused) if isinstance(refused, ValidationError) else str(error)
        print(f"inscape: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        print("inscape: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
