"""The command line: which task, which command, its options, and the help."""

import argparse
import dataclasses
import json
import os
import sys
import textwrap
from dataclasses import dataclass

from depixelation.commands import Command, commands_of
from depixelation.engine.task import Task
from depixelation.tasks import load_task, task_names
from utils import (
    RETIRED,
    ROOT,
    Keys,
    UserError,
    check_value,
    config_from_dict,
    key_types,
    override,
    read_config_file,
    unknown_key,
    with_absolute_paths,
)

RESUME = Command("resume", None, "continue an interrupted run with its own config; options override it")


@dataclass
class Request:
    """What the user asks for."""

    command: Command | None  # None: train
    operands: list
    task: Task  # with the configuration
    options: Keys  # of the command
    named: dict  # {key of the configuration: value} of the options that were named
    config_file: str | None  # where the configuration was read from


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and exit."""

    def __init__(self):
        super().__init__(prog="main.py", allow_abbrev=False, add_help=False)

    def error(self, message):
        raise UserError(f"command line: {message}; see --help")


def read_command_line(arguments):
    """Parse the arguments into a Request; None if they ask for help, which is printed. Raises UserError."""
    first = Parser()
    first.add_argument("--task")
    first.add_argument("--config")
    first.add_argument("-h", "--help", nargs="?", const="")
    named, rest = first.parse_known_args(arguments)
    path, values = named.config, {}
    if path is None and named.task in (None, "depixelation"):
        path = os.path.join(ROOT, "config.json")  # the default for depixelation only
    if path is not None:
        values = read_config_file(path)
    name = named.task or str(values.get("task", "depixelation"))
    task_type = load_task(name, path if path and not named.task else "command line")
    if path and values.get("task", "depixelation") != name:
        raise UserError(f"{path}: is a configuration for --task {values.get('task', 'depixelation')}, not for {name}")
    commands = {"resume": RESUME, **commands_of(name)}
    if named.help is not None:
        asked = next((word[2:] for word in rest if word[2:] in commands and word.startswith("--")), None)
        print(help_text(name, task_type, commands, commands.get(asked), named.help == "all"))
        return None
    return parse(arguments, task_type, commands, values, path)


def parse(arguments, task_type, commands, values, config_file):
    """The Request of a command line. values: of the config file; options override them."""
    config_type, parser = task_type.Config, Parser()
    group = parser.add_mutually_exclusive_group()
    for name, command in commands.items():
        kind = {"nargs": command.operands, "metavar": command.metavar}
        if command.operands is None:
            kind = {"action": "store_true", "default": None}
        elif command.operands == "?":
            kind["const"] = []
        group.add_argument(f"--{name}", **kind)
    parser.add_argument("--config")
    owners = option_owners(config_type, commands, task_type)
    for name, (keys, _) in owners.items():
        parser.add_argument(f"--{name}", **keys.limits(name).get("argparse", {}))
    known, unknown = parser.parse_known_args(arguments)
    for word in unknown:
        if word.startswith("--"):
            raise unknown_key(word[2:].partition("=")[0], [*owners, *commands], "command line", "--")
        raise UserError(f"command line: {word!r} is not expected here; options begin with --, see --help")
    command = next((command for name, command in commands.items() if getattr(known, name) is not None), None)
    options_type = command.options_type(task_type) if command else RESUME.options
    named = {name: getattr(known, name) for name in owners if getattr(known, name) is not None}
    for name in named:
        if name not in key_types(config_type) and name not in key_types(options_type):
            users = ", ".join(f"--{user}" for user in owners[name][1])
            print(f"warning: --{name} has no effect here; it is an option of {users}", file=sys.stderr)
    config, named_keys = read_config(config_type, values, config_file, named)
    options = with_absolute_paths(options_type(**checked_options(options_type, named)), named, os.getcwd())
    operands = getattr(known, command.name) if command else []
    operands = [operands] if isinstance(operands, str) else [] if operands is True else operands
    return Request(command, operands, task_type(config), options, named_keys, config_file)


def option_owners(config_type, commands, task_type):
    """{option: (Keys class that defines it, names of the commands that own it)}"""
    owners = {name: (config_type, []) for name in key_types(config_type)}
    for command in commands.values():
        keys = command.options_type(task_type)
        for name in key_types(keys):
            owners.setdefault(name, (keys, []))[1].append(command.name)
    return owners


def read_config(config_type, values, config_file, named):
    """(the Config from a file's values and the options; the options, checked)."""
    retired = sorted(name for name in values if name in RETIRED and name not in key_types(config_type))
    if retired:
        kept = ", ".join(retired)
        print(f"{config_file}: {kept}: no longer part of a configuration, so ignored here", file=sys.stderr)
    folder = os.path.dirname(os.path.abspath(config_file)) if config_file else ROOT
    config = config_from_dict(config_type, values, config_file, folder)
    here = values.get("images", "")
    if config.path_keys({"images": config.images}) and os.path.exists(here) and not os.path.exists(config.images):
        config = dataclasses.replace(config, images=os.path.abspath(here))  # a model's config keeps only the name
    checked = checked_options(config_type, named)
    checked |= {name: os.path.abspath(checked[name]) for name in config_type.path_keys(checked)}
    return override(config, checked), checked


def checked_options(keys, named):
    """{key: value} of the options that belong to this Keys class. named: {option: value from argparse}."""
    return {
        name: check_value(keys, name, _parse_option(keys, name, named[name]), "command line")
        for name in key_types(keys)
        if name in named
    }


def _parse_option(keys, name, text):
    """Parse an option's text as JSON; text keys take it verbatim; "none" and "null" mean None."""
    kind, *others = key_types(keys)[name]
    if isinstance(text, list):
        return [int(word) if str(word).lstrip("-").isdecimal() and len(word) < 20 else word for word in sum(text, [])]
    if others and text.lower() in ("none", "null"):
        return None
    if kind is str:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # ValueError: also a number with too many digits
        return text


# ------------------------------------------------------------------------------------------------ help

FIRST_KEYS = "images name max_minutes epochs network loss batch_size learning_rate init device".split()
GROUPS = {  # of --help all; a task's own keys come last
    "images and files": "task images name synthetic_images max_images validation_fraction cache_dir output_dir init",
    "network": "network network_options",
    "training": "epochs max_minutes optimizer batch_size learning_rate warmup decay weight_decay gradient_clip "
    "ema_decay validate_every patience seed",
    "machine": "device precision workers tensorboard",
}
FOOT = """\
exit status: 0 done; 1 some photos were not restored; 2 a mistake in the options or files; 130, 143 interrupted"""


def help_text(name, task_type, commands, command, everything):
    """The text of --help: for a command, for everything, or one screen."""
    if command:
        return command_help(name, task_type, command)
    lines = [f"--task {name}: {task_type.summary}.", ""]
    lines += ["python main.py [--KEY VALUE ...]            trains as config.json and the options say"]
    lines += ["python main.py --COMMAND ... [--help]       runs a command; --help lists its options", ""]
    lines += ["commands"]
    for each in commands.values():
        lines += _entry(_usage(each), each.help, 30)
    if everything:
        for group, keys in [*_groups(task_type.Config)]:
            lines += ["", f"keys: {group}"]
            for key in keys:
                lines += _entry(f"--{key}", _key_help(task_type.Config, key), 24)
    else:
        lines += ["", "most used keys (--help all lists every key)"]
        for key in FIRST_KEYS:
            if key in key_types(task_type.Config):
                lines += _entry(f"--{key}", _key_help(task_type.Config, key), 18, 1)
        lines += ["", "tasks (--task NAME --help)"]
        lines += [f"  {other:<18}{load_task(other).summary}" for other in task_names()]
    return "\n".join([*lines, "", FOOT])


def command_help(task_name, task_type, command):
    """The text of --COMMAND --help."""
    prefix = "" if task_name == "depixelation" else f"--task {task_name} "
    lines = [f"python main.py {prefix}{_usage(command)} [--KEY VALUE ...]", *textwrap.wrap(command.help + ".", 110)]
    options = command.options_type(task_type)
    if key_types(options):
        lines += ["", "options"]
        for key in key_types(options):
            lines += _entry(f"--{key}", _key_help(options, key), 24)
    shared = "images output_dir cache_dir device precision".split()
    lines += ["", f"these training keys apply, too: {', '.join('--' + key for key in shared)} (--help all)"]
    return "\n".join([*lines, *(["", f"example: {command.example}"] if command.example else [])])


def _usage(command):
    words = command.metavar if isinstance(command.metavar, tuple) else (command.metavar,)
    operands = " ".join(filter(None, words))
    operands = {"*": f"[{operands} ...]", "+": f"{operands} ...", "?": f"[{operands}]"}.get(command.operands, operands)
    return f"--{command.name} {operands}".rstrip()


def _entry(term, text, width, most=None):
    """The lines of a term and its explanation; at most `most` lines."""
    wrapped = textwrap.wrap(text, 116 - width) or [""]
    if most and len(wrapped) > most:
        wrapped = [
            *wrapped[: most - 1],
            textwrap.shorten(" ".join(wrapped[most - 1 :]), 116 - width, placeholder=" ..."),
        ]
    first = f"  {term:<{width - 2}}"
    if len(first) > width:
        return [first.rstrip(), *(" " * width + line for line in wrapped)]
    return [first + wrapped[0], *(" " * width + line for line in wrapped[1:])]


def _key_help(keys, name):
    limits, default = keys.limits(name), getattr(keys(), name)
    kind = {str: "text", int: "integer", float: "number", bool: "true|false", list: "list", dict: "JSON"}
    choices = f" ({', '.join(limits['choices'])})" if "choices" in limits else ""
    default = f"; default {json.dumps(default)}" if default is not None else ""
    return f"{kind[key_types(keys)[name][0]]}: {limits['help']}{choices}{default}"


def _groups(config_type):
    """Yield (group, keys) until all keys of a Config are listed."""
    left = list(key_types(config_type))
    for group, names in GROUPS.items():
        keys = [name for name in names.split() if name in left]
        left = [name for name in left if name not in keys]
        yield group, keys
    if left:
        yield "this task", left
