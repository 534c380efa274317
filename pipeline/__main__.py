"""``unlearn COMMAND``, and the same as ``python -m pipeline COMMAND``: what a person types.

``init`` writes an experiment for your own model and files. ``run`` takes an experiment from its files to its report.
``validate`` says what an experiment will run, or everything that is wrong with it. ``plan`` says what it costs on GPUs,
and ``simulate`` what each rank holds and exchanges in a step.
``evaluate`` evaluates any Hugging Face model, and ``merge`` makes one of a base model and its adapters. ``metrics``
computes an evaluation's metrics again. ``exchange`` writes and reads open-unlearning's logs. ``compare`` says what
differs between two finished experiments. ``sign`` and ``verify`` are for results that are handed on.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence

from megatron_ext.schema import BrokenFile

try:
    from pipeline.commands import (
        compare,
        evaluate,
        exchange,
        init,
        merge,
        metrics,
        plan,
        run,
        sign,
        simulate,
        validate,
        verify,
    )
except BrokenFile as error:  # a person's own loss, rule, model family or benchmark
    print(error, file=sys.stderr)
    raise SystemExit(2) from error

COMMANDS = {
    "init": (init, "write an experiment for a model and files of what is to be forgotten and kept"),
    "run": (run, "run an experiment, with progress; goes on where an earlier run was stopped or killed"),
    "validate": (validate, "check an experiment and print its jobs; exits 2 if it is wrong"),
    "plan": (plan, "say what an experiment costs on GPUs, and recommend a layout; exits 1 if a step does not fit"),
    "simulate": (simulate, "build every distinct rank in this process and say what it holds and exchanges in a step"),
    "evaluate": (evaluate, "evaluate a Hugging Face model on a benchmark"),
    "merge": (merge, "merge a folder of LoRA adapters into its base model"),
    "metrics": (metrics, "compute metrics again from an examples.jsonl"),
    "compare": (compare, "say what differs between two finished experiments, with significance over seeds"),
    "exchange": (exchange, "write an evaluation as open-unlearning's logs, or read such logs"),
    "sign": (sign, "sign the evidence and the unlearned checkpoints of an experiment's results"),
    "verify": (verify, "check these signatures; exits 1 where a byte has changed"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that is asked for; returns its exit status."""
    parser = argparse.ArgumentParser(prog="unlearn", description=(__doc__ or "").partition("\n\n")[2].replace("``", ""))
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, (module, text) in COMMANDS.items():
        examples = f"examples:\n{textwrap.indent(module.USAGE.strip(), '  ')}"
        layout = argparse.RawDescriptionHelpFormatter
        about = f"{text[0].upper()}{text[1:]}."
        own = parsers.add_parser(name, help=text, description=about, epilog=examples, formatter_class=layout)
        module.add_arguments(own)
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    given = parser.parse_args(words[:cut])
    given.further = words[cut + 1 :]
    if given.further and given.command != "run":
        parser.error(f"{given.command}: nothing may follow --, given {' '.join(given.further)}")
    try:
        return COMMANDS[given.command][0].main(given)
    except BrokenFile as error:
        print(error, file=sys.stderr)
        return 2


def script() -> None:
    """The console script ``unlearn``."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, `head` for one, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141  # as a program that SIGPIPE ended
    sys.exit(status)


if __name__ == "__main__":
    script()
