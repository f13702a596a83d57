"""What the commands share: help layout, lazy groups, option types and the options that several commands take."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import click

from invdiff.machine.device import DEVICES, PRECISIONS

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Layout(click.Command):
    """Help at most 100 columns wide, examples with their line breaks, and --debug on every command."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options["context_settings"] = {
            "max_content_width": 100,
            "help_option_names": ["-h", "--help"],
            "show_default": True,
        } | options.get("context_settings", {})
        super().__init__(*args, **options)
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                show_default=False,
                envvar="INVDIFF_DEBUG",
                callback=_remember_debug,
                help="Show the traceback of an error (also: INVDIFF_DEBUG=1).",
            )
        )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The epilog is a block of commands to paste: one heading, and its lines as they are."""
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.strip().splitlines():
                    formatter.write(f"  {line}".rstrip() + "\n")


def _remember_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().command.debug = True  # type: ignore[attr-defined]


class Command(_Layout):
    """A command of this program."""


class LazyGroup(_Layout, click.Group):
    """A group whose commands are "module:attribute", imported when asked for."""

    debug = False

    def __init__(self, *args: Any, commands: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.targets = dict(commands)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.targets)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.targets:
            return None
        module, _, attribute = self.targets[cmd_name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = str(args[0])
        if name not in self.targets and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.targets, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {name!r}.{hint} Commands: {', '.join(self.targets)}.")
        return super().resolve_command(ctx, args)


class Size(click.ParamType):
    """HxW in pixels; one number is a square."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value  # type: ignore[return-value]
        parts = str(value).lower().split("x")
        if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a size in pixels; write 256x384 (height x width) or 256.", param, ctx)
        return int(parts[0]), int(parts[-1])


class Sizes(click.ParamType):
    """Sizes in pixels, separated by commas."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[int, int], ...]:
        parts = value if isinstance(value, tuple) else str(value).split(",")
        return tuple(Size().convert(part if isinstance(part, tuple) else part.strip(), param, ctx) for part in parts)


class KeyValue(click.ParamType):
    """key=value."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value  # type: ignore[return-value]
        key, equals, text = str(value).partition("=")
        if not (key.strip() and equals and text.strip()):
            self.fail(f"{value!r} is not of the form key=value.", param, ctx)
        return key.strip(), text.strip()


class SampleCount(click.ParamType):
    """A whole number of at least 1, or auto."""

    name = "samples"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto" or (isinstance(value, int) and value >= 1):
            return value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is not a whole number of at least 1, nor auto.", param, ctx)
        return int(value)


class Tile(click.ParamType):
    """A whole number of pixels, auto or off."""

    name = "tile"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value in ("auto", "off") or (isinstance(value, int) and value >= 1):
            return value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is not a number of pixels, auto or off.", param, ctx)
        return int(value)


class Quantiles(click.ParamType):
    """Numbers between 0 and 1, separated by commas."""

    name = "quantiles"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = (-1.0,)
        if not all(0 <= number <= 1 for number in numbers) or len(set(numbers)) != len(numbers):
            self.fail(f"{value!r} is not a list of different numbers between 0 and 1, such as 0.05,0.95.", param, ctx)
        return numbers


class Fraction(click.ParamType):
    """A number or a quotient."""

    name = "fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from invdiff.specs.parameters import fraction

        try:
            return fraction(value)
        except ValueError:
            self.fail(f"{value!r} is not a number or a quotient such as 1/255.", param, ctx)


class Numbers(click.ParamType):
    """Whole numbers above zero, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a list such as 32,64,128.", param, ctx)
        return tuple(map(int, parts))


def unique(pairs: tuple[tuple[str, Any], ...], option: str) -> dict[str, Any]:
    """The pairs of a repeatable key=value option as a dict; a key given twice is an error."""
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise click.UsageError(f"{option} {twice}=... is given twice.")
    return values


def together(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which --help shows them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


class _OperatorOption(click.Option):
    """Its help names the operators there are, installed plug-ins included."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from invdiff.operators import names

        self.help = f"{OPERATOR_HELP} NAME is one of {', '.join(names())} (`invdiff operators list`)."
        return super().get_help_record(ctx)


OPERATOR_HELP = (
    "Forward operator A: NAME, NAME:key=value,... or a class of your own, FILE.py:CLASS(key=value,...), which runs the "
    "code in that file; 'A | B' is A and then B."
)
operator_option = click.option("--operator", cls=_OperatorOption, metavar="SPEC", required=True, help=OPERATOR_HELP)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", default=0, help="Seed of the random numbers (0 is a seed)."
)
prior_option = click.option(
    "--prior",
    metavar="PRIOR",
    default="natural",
    help="A shipped prior's name (`invdiff prior list`), a diffusers folder, a guided-diffusion .pt, or a Hugging Face id.",
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print errors only.")

raw_options = together(
    click.option("--key", metavar="NAME[i,j]", help="Array of an .npz or .h5 file, and indices into its first axes."),
    click.option(
        "--axes", metavar="CHW", help="Stored axes of a raw array, in order: C, H, W, and 2 for (real, imaginary)."
    ),
    click.option(
        "--scale", type=Fraction(), metavar="FACTOR", help="Factor on raw values, needed for integers: 1/255."
    ),
)
hardware_options = together(
    click.option("--device", metavar="DEVICE", default="auto", help=f"Where the network runs: {', '.join(DEVICES)}."),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        metavar="TYPE",
        default="auto",
        help=f"The network's arithmetic: {', '.join(PRECISIONS)}.",
    ),
)
compile_option = click.option(
    "--compile/--no-compile",
    default=None,
    help="Compile the network with torch first, a minute for each size of image; `invdiff bench --compile` says when it "
    "pays. --no-compile: also without the fused kernels and CUDA graphs that a GPU takes by default.",
)


def compile_words(compile: bool | None) -> list[str]:
    """The option as it was given, for a command that repeats a run."""
    return [] if compile is None else ["--compile" if compile else "--no-compile"]


format_option = click.option(
    "--format",
    "extension",
    type=click.Choice(["png", "tiff", "npy"]),
    help="File type of the outputs in a folder.  [default: png]",
)
measurement_format_option = click.option(
    "--format",
    "extension",
    type=click.Choice(["png", "tiff", "npy", "npz", "safetensors"]),
    help="File type of the outputs in a folder; npz and safetensors hold operator and noise too.  [default: png]",
)
file_options = together(
    click.option(
        "--bits",
        type=click.Choice(["8", "16"]),
        help="Bits per value of PNG and TIFF files.  [default: 8 for PNG, float for TIFF]",
    ),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Replace any existing output. Without it, only outputs that invdiff wrote itself (those with "
        "their .json record) are replaced, anything else is refused.",
    ),
    click.option("--skip-existing", is_flag=True, help="Leave finished outputs as they are and do the others."),
)
