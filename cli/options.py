"""What the commands share: help layout, lazy groups, option types and the options that several commands take."""

from __future__ import annotations

import difflib
import importlib
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import click

from invdiff.machine.device import DEVICES, PRECISIONS

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Command(click.Command):
    """A command of this program, with --debug, help of at most 100 columns, and examples that keep their line breaks."""

    def __init__(self, *args: Any, **options: Any) -> None:
        layout = {"max_content_width": 100, "help_option_names": ["-h", "--help"], "show_default": True}
        options["context_settings"] = layout | options.get("context_settings", {})
        super().__init__(*args, **options)
        text = "Show the traceback of an error (also: INVDIFF_DEBUG=1)."
        hidden = {"expose_value": False, "is_eager": True, "show_default": False}
        self.params.append(
            click.Option(
                ["--debug"], is_flag=True, envvar="INVDIFF_DEBUG", callback=_remember_debug, help=text, **hidden
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


class LazyGroup(Command, click.Group):
    """A group whose commands are "module:attribute", imported when asked for."""

    debug = False

    def __init__(self, *args: Any, commands: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.targets: dict[str, str] = dict(commands)

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


class Parsed(click.ParamType):
    """A type of option: `read` makes its value from text and raises ValueError for what is not `wanted`.

    joints: what stands between the parts of a value that is a tuple, outermost first.
    """

    read: Callable[[str], Any]
    joints: str
    wanted: str

    def __init__(self, name: str, read: Callable[[str], Any], wanted: str, joints: str = "") -> None:
        self.name, self.read, self.wanted, self.joints = name, read, wanted, joints

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.read(value)
        except ValueError:
            self.fail(f"{value!r} is not {self.wanted}.", param, ctx)


def _joined(value: Any, joints: str) -> str:
    """The text of a value."""
    return joints[0].join(_joined(part, joints[1:]) for part in value) if isinstance(value, tuple) else str(value)


def _whole(text: str, *words: str) -> Any:
    """A whole number of at least 1, or one of some words."""
    if text in words:
        return text
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(text)
    return int(text)


def _size(text: str) -> tuple[int, int]:
    """Height and width; one number is a square."""
    sides = [_whole(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides[0], sides[-1]


def _list(read: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(read(part.strip()) for part in text.split(","))


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not (key.strip() and value.strip()):
        raise ValueError(text)
    return key.strip(), value.strip()


def _quantiles(text: str) -> tuple[float, ...]:
    numbers = _list(float)(text)
    if not all(0 <= number <= 1 for number in numbers) or len(set(numbers)) != len(numbers):
        raise ValueError(text)
    return numbers


def _shape(text: str) -> tuple[int, ...]:
    from invdiff.specs.parameters import shape

    return shape(text)


def _fraction(text: str) -> float:
    from invdiff.specs.parameters import fraction

    return fraction(text)


SIZE = Parsed("size", _size, "a size in pixels; write 256x384 (height x width) or 256", "x")
SIZES = Parsed("sizes", _list(_size), "a list of sizes in pixels, such as 64,256x384 (height x width)", ",x")
KEY_VALUE = Parsed("key=value", _pair, "of the form key=value", "=")
SAMPLES = Parsed("samples", lambda text: _whole(text, "auto"), "a whole number of at least 1, nor auto")
TILE = Parsed("tile", lambda text: _whole(text, "auto", "off"), "a number of pixels, auto or off")
QUANTILES = Parsed("quantiles", _quantiles, "a list of different numbers between 0 and 1, such as 0.05,0.95", ",")
SHAPE = Parsed("shape", _shape, "a shape such as 3x64x64", "x")
FRACTION = Parsed("fraction", _fraction, "a number or a quotient such as 1/255")
NUMBERS = Parsed("numbers", _list(_whole), "a list of whole numbers above 0, such as 32,64,128", ",")


def count(*names: str, metavar: str = "N", **settings: Any) -> Decorator:
    """An option that takes a whole number of at least 1."""
    return click.option(*names, type=click.IntRange(min=1), metavar=metavar, **settings)


def repeat_command(context: click.Context | None = None, **resolved: Any) -> str:
    """The command that makes a result again: every parameter of the command that is running, its default included,
    since a later version may have others.

    resolved: values to write in the place of what was given, by the parameter's name; None leaves it out, as are options
    that decide which files may be replaced and what is printed.
    """
    context = context or click.get_current_context()
    values = {**context.params, **dict.fromkeys(("overwrite", "skip_existing", "quiet")), **resolved}
    arguments, words = [], []
    for parameter in context.command.params:
        value = values.get(parameter.name or "")
        if value is None:
            continue
        parts = value if parameter.multiple or parameter.nargs != 1 else [value]
        texts = [_joined(part, getattr(parameter.type, "joints", "")) for part in parts]
        if isinstance(parameter, click.Argument):
            arguments += texts
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words += sorted(parameter.opts if value else parameter.secondary_opts, key=len)[-1:]
        else:
            words += [word for text in texts for word in (max(parameter.opts, key=len), text)]
    return shlex.join([*context.command_path.split(), *arguments, *words])


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
operator_option: Decorator = click.option(
    "--operator", cls=_OperatorOption, metavar="SPEC", required=True, help=OPERATOR_HELP
)
seed_option: Decorator = click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", default=0, help="Seed of the random numbers (0 is a seed)."
)
prior_option: Decorator = click.option(
    "--prior",
    metavar="PRIOR",
    default="natural",
    help="A shipped prior's name (`invdiff prior list`), a diffusers folder, a guided-diffusion .pt, or a Hugging Face id.",
)
quiet_option: Decorator = click.option("--quiet", "-q", is_flag=True, help="Print errors only.")

raw_options: Decorator = together(
    click.option("--key", metavar="NAME[i,j]", help="Array of an .npz or .h5 file, and indices into its first axes."),
    click.option(
        "--axes", metavar="CHW", help="Stored axes of a raw array, in order: C, H, W, and 2 for (real, imaginary)."
    ),
    click.option("--scale", type=FRACTION, metavar="FACTOR", help="Factor on raw values, needed for integers: 1/255."),
)
hardware_options: Decorator = together(
    click.option("--device", metavar="DEVICE", default="auto", help=f"Where the network runs: {', '.join(DEVICES)}."),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        metavar="TYPE",
        default="auto",
        help=f"The network's arithmetic: {', '.join(PRECISIONS)}.",
    ),
)
compile_option: Decorator = click.option(
    "--compile/--no-compile",
    default=None,
    help="Compile the network with torch first, a minute for each size of image; `invdiff bench --compile` says when it "
    "pays. --no-compile: also without the fused kernels and CUDA graphs that a GPU takes by default.",
)


def format_option(*extensions: str, more: str = "") -> Decorator:
    """--format, the file type of the outputs in a folder."""
    text = f"File type of the outputs in a folder{more}.  [default: png]"
    return click.option("--format", "extension", type=click.Choice(extensions), help=text)


overwrite_option: Decorator = click.option(
    "--overwrite", is_flag=True, help="Replace existing files that invdiff did not write."
)
file_options: Decorator = together(
    click.option(
        "--bits",
        type=click.Choice(["8", "16"]),
        callback=lambda context, parameter, value: value and int(value),
        help="Bits per value of PNG and TIFF files.  [default: 8 for PNG, float for TIFF]",
    ),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Replace any existing output. Without it, only what an earlier run wrote (the files that the record OUT.json "
        "lists) is replaced, anything else is refused.",
    ),
    click.option("--skip-existing", is_flag=True, help="Leave finished outputs as they are and do the others."),
)
