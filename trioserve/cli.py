"""The command line, made from the declarations of the options."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click

from .cli_inspect import run_inspect
from .config import options
from .errors import AppLoadError, ConfigError
from .options import Group, Option
from .process.banner import read_version
from .process.loader import split_target
from .process.runner import run_settings
from .process.settings import format_settings, read_settings
from .switching import find_foreign_variables, translate
from .types import AnyValue, PlainValues

_OTHER = "Settings and help"
_COMMANDS = ("inspect",)

_EPILOG = """\b
Each option can also be set in the environment (TRIOSERVE_PORT=8000) and in a file: --config FILE,
else trioserve.toml in the current folder, else [tool.trioserve] of the nearest pyproject.toml.
In the environment several values of one option are separated by commas or line breaks.
The command line wins over the environment, the environment over the file; "none" stands for no value.

\b
`trioserve inspect [PID]` shows what a running server does.

\b
Exit codes: 0 stopped and drained, 1 crashed or cut off by the hard deadline, 2 wrong usage,
3 cannot start.
"""


@dataclass(frozen=True)
class _Reader:
    """Reads one option from the command line as it is read from everywhere else."""

    option: Option

    def __call__(self, context: click.Context, parameter: click.Parameter, value: AnyValue) -> AnyValue:
        if value is None or value == ():
            return None  # not given
        try:
            # Options that are given several times are not split at commas: a header may contain one.
            return self.option.parse(value) if isinstance(value, str) else self.option.check(_as_plain(value))
        except ConfigError as error:
            raise click.BadParameter(str(error), context, parameter) from None


def _as_plain(value: bool | Sequence[str]) -> bool | list[str]:
    return value if isinstance(value, bool) else list(value)


class _Option(click.Option):
    """A click option that knows under which heading ``--help`` shows it."""

    heading = _OTHER


def _make_parameter(one: Option) -> click.Parameter:
    names = [one.name, f"{one.flag}/--no-{one.flag[2:]}" if one.kind is bool else one.flag]
    # click gets no default: whether an option was given decides if the environment and the file are asked.
    made = _Option(
        names,
        default=None,
        type=bool if one.kind is bool else str,
        multiple=one.repeatable,
        metavar=None if one.kind is bool else _metavar(one),
        help=one.help + _default_note(one),
        callback=_Reader(one),
    )
    made.heading = one.group.value
    return made


def _metavar(one: Option) -> str:
    if one.choices:
        return "[" + "|".join(one.choices) + "]"
    return one.metavar or {int: "N", float: "SECONDS", str: "TEXT"}[one.kind]


def _default_note(one: Option) -> str:
    if one.default is None or one.default in ((), ""):
        return ""
    if isinstance(one.default, bool):
        return "  [default: on]" if one.default else ""
    return f"  [default: {one.default:g}]" if isinstance(one.default, float) else f"  [default: {one.default}]"


class _Command(click.Command):
    """Shows its options under the headings of their groups, and what was probably meant by one that is not there."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _check_command(args, ctx)
        if args[:1] == ["inspect"]:  # no application, whose name has a colon
            run_inspect(args[1:], ctx.command_path)
        try:
            args = translate(args)
            return super().parse_args(ctx, list(args))
        except ConfigError as error:
            raise click.UsageError(str(error), ctx) from None
        except click.NoSuchOption as error:
            # Of -reloda click knows only that there is no -r.
            asked = next(each for each in args if each.startswith(error.option_name)).partition("=")[0]
            # Not click's own guess: the hyphens that all have in common make it propose --header for --reload.
            names = [name.lstrip("-") for each in self.params for name in (*each.opts, *each.secondary_opts)]
            near = difflib.get_close_matches(asked.lstrip("-"), names, 1)
            hint = f"; did you mean '--{near[0]}'?" if near else ""
            raise click.UsageError(f"there is no option {asked!r}{hint}", ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings = [*(group.value for group in Group), _OTHER]
        parameters = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        for heading in headings:
            rows = [each.get_help_record(ctx) for each in parameters if getattr(each, "heading", _OTHER) == heading]
            with formatter.section(heading):
                formatter.write_dl([row for row in rows if row is not None], col_max=34)


def _check_command(arguments: Sequence[str], context: click.Context) -> None:
    """Refuse a first word that is meant for a command, as other servers have them."""
    first = arguments[0] if arguments else ""
    if first.isidentifier() and first not in _COMMANDS:
        if near := difflib.get_close_matches(first, _COMMANDS, 1, 0.75):
            raise click.UsageError(f"there is no command {first!r}; did you mean 'trioserve {near[0]}'?", context)
        second = arguments[1] if len(arguments) > 1 else "-"
        if second.strip(":").isidentifier():
            raise click.UsageError(f"APP is one word; did you mean '{first}:{second.strip(':')}'?", context)
        if not second.startswith("-"):
            raise click.UsageError(f"there is no command {first!r}; leave it out: trioserve {second}", context)


def _check_app(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        # A bare word is left free for sub-commands, so it is wrong usage here and not an application that is missing.
        try:
            split_target(value)
        except AppLoadError as error:
            raise click.UsageError(str(error), context) from None
    return value


def _serve(app: str | None, config: str | None, print_config: bool, **given: AnyValue) -> None:
    """Serve APP, an ASGI application given as module:attribute, on Trio.

    First steps: trioserve trioserve.demo:app
    """
    context = click.get_current_context()
    values: PlainValues = {name: value for name, value in given.items() if _was_given(context, name)}
    try:
        settings = read_settings(values, app=app, config_file=config)
        target = _check_app_set(settings.app, settings.sources["app"])
        foreign = tuple(find_foreign_variables(settings.sources))
    except (ConfigError, AppLoadError) as error:
        raise click.UsageError(str(error)) from None
    settings = dataclasses.replace(settings, warnings=settings.warnings + foreign)
    if print_config:
        for warning in settings.warnings:
            click.echo(f"warning: {warning}", err=True)
        click.echo(format_settings(settings))
        return
    if target is None:
        raise click.UsageError(
            "APP is missing: name your application as module:attribute, such as main:app, or try trioserve.demo:app"
        )
    context.exit(run_settings(target, settings, ends_process=True))


def _was_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _check_app_set(target: str | None, source: str) -> str | None:
    if target is not None:
        try:
            split_target(target)
        except AppLoadError as error:
            raise ConfigError(f"{error} ({source})") from None
    return target


def _parameters() -> list[click.Parameter]:
    return [
        click.Argument(["app"], required=False, metavar="APP", callback=_check_app),
        *(_make_parameter(one) for one in options()),
        _Option(["config", "--config"], metavar="FILE", help="Read options from this TOML file."),
        _Option(
            ["print_config", "--print-config"], is_flag=True, help="Show each value and where it came from, and exit."
        ),
    ]


def _make_command(serve: Callable[..., None]) -> click.Command:
    command = _Command(
        "trioserve",
        callback=serve,
        params=_parameters(),
        help=serve.__doc__,
        epilog=_EPILOG,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    return click.version_option(read_version(), message="trioserve %(version)s")(command)


main = _make_command(_serve)
