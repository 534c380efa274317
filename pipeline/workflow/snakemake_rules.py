"""What the Snakemake rules ask for: a job's input, source files, specification and resources, from its wildcards."""

from __future__ import annotations

import atexit
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from pipeline.config import site
from pipeline.config.load import load
from pipeline.config.located_yaml import ConfigError, hint
from pipeline.config.site import Site
from pipeline.config.sizing import on_gpus, visible_gpus
from pipeline.data.errors import printable
from pipeline.judging.endpoint import KeyMissing, api_key
from pipeline.launch.environment import RUN
from pipeline.launch.lease import Held
from pipeline.specs import ModelId
from pipeline.steps.programs import source_digest
from pipeline.workflow import containers, image_checks, paths, resources, runs, slurm_site
from pipeline.workflow.given_files import fingerprint
from pipeline.workflow.jobs import Job, canonical
from pipeline.workflow.plan import Plan
from pipeline.workflow.robustness_jobs import attacks

OPTIONS = ("experiment", "data_root", "results", "site", "image", "set")


def read(options: Mapping[str, Any], cluster: bool = False) -> tuple[Plan, Site]:
    """The plan that ``--config`` asks for, and the site; prints every problem and exits with 2 where there is one.

    Args:
        options: What ``--config`` gives; each but ``set`` is a text, or a list of one, which Snakemake reads as it is.
        cluster: Whether jobs run on the site's nodes, which must hold them then in place of this machine.
    """
    options = {name: _text(value) if name != "set" else value for name, value in options.items()}
    unknown = [name for name in options if name not in OPTIONS]
    problems = [f"--config {name}: unknown option{hint(name, list(OPTIONS))}" for name in unknown]
    given = {f"--config {name}": options[name] for name in OPTIONS if name in options and name not in ("image", "set")}
    problems += [wrong for name, path in given.items() if (wrong := paths.refusal(name, path))]
    if cluster:  # a job is told every option again
        told = {f"--config {name}": options[name] for name in ("image", "set") if name in options}
        problems += [wrong for name, text in told.items() if (wrong := paths.refusal(name, text, paths.QUOTED))]
    data_root = options.get("data_root")  # Snakemake reads data_root=2024 as a number
    settings = options.get("set", [])
    settings = [settings] if isinstance(settings, str) else settings
    if not isinstance(settings, list) or not all(isinstance(text, str) for text in settings):
        problems.append(f"--config set: {settings!r} is not allowed: KEY=VALUE, or a list of such texts in quotes")
        settings = []
    file = site.find(options.get("site"))
    here, plan = Site(), None
    try:
        here = site.load(file)
    except ConfigError as error:
        problems += error.problems
    if "image" in options:
        here = here.model_copy(update={"image": Path(str(options["image"])).expanduser()})
    if here.image is not None and here.image.is_dir():
        problems.append(f"image: {str(here.image)!r} is a folder")
    experiment = str(options.get("experiment", "mini"))
    use_cache(here)
    try:
        folder = None if data_root is None else str(data_root)
        config = load(experiment, folder, here if cluster else None, settings)
        plan = Plan(config, Path(str(options.get("results", "results"))))
        if cluster:
            problems += resources.problems(plan, here, site.named(file))
        problems += paths.refused_inputs((path for job in plan.jobs.values() for path in job.inputs), cluster)
    except ConfigError as error:
        problems += error.problems
    if problems or plan is None:
        _stop(problems)
    return plan, here


def _text(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value


def use_cache(here: Site) -> None:
    """Let what is fetched come into the folders that containers see; a token stays where a login put it, which others
    may not read."""
    token = Site().huggingface / "token"  # without the site's hf_home
    if here.hf_home is not None and token.is_file():
        os.environ.setdefault("HF_TOKEN_PATH", str(token))
    folders = {"HF_HOME": here.huggingface, "HF_HUB_CACHE": here.hub, "HF_DATASETS_CACHE": here.datasets}
    os.environ |= {name: str(folder) for name, folder in folders.items()}


def set_environment(plan: Plan, here: Site, image: Path | None) -> None:
    """Let steps that are started from now on find the ``python`` that runs Snakemake, whether or not its environment is
    activated; and containers, where there is an ``image``, what they need."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if image is not None:
        try:
            containers.enter(containers.environment(here, plan, image))
        except ConfigError as error:
            _stop(error.problems)


def plan_without_apptainer() -> None:
    """Let a plan be made where Apptainer is not installed; ``require_apptainer`` asks for it when jobs start.

    Snakemake itself asks as soon as it knows the jobs, of a dry run too. It keeps that it has asked.
    """
    if not _apptainer_is_here():
        from snakemake.deployment.singularity import Singularity

        Singularity().checked = True


def require_apptainer() -> None:
    """Exit with 2 where steps are about to run in containers and Apptainer is not installed."""
    if not _apptainer_is_here():
        _stop(["apptainer: no such program on PATH, and steps run in its containers. Load its module, if it has one"])


def _apptainer_is_here() -> bool:
    return any(shutil.which(name) for name in ("apptainer", "singularity"))


def require_image(image: Path, here: Site) -> None:
    """Exit with 2 where steps are about to run in an image that is not there or not whole; say where it is of another
    checkout, and exit for that too where the site says ``require_current_image``."""
    if not image.is_file():
        make = "`make image` or `make image-cpu` builds one; 'image' in site.yaml or --config image= names another"
        what = "is no file" if image.exists() else "does not exist"
        _stop([f"image: {str(image)!r} {what}. {make}"])
    if damage := image_checks.damage(image):
        _stop([damage])
    if older := image_checks.older(image):
        if here.require_current_image:
            _stop([f"{older}. site.yaml: require_current_image: true"])
        print(printable(f"{older}. The steps run this checkout's code with the image's packages"), file=sys.stderr)


def require_judge_key(plan: Plan) -> None:
    """Say what is about to be sent to the judge and where; exit with 2 where the environment lacks its key."""
    settings = plan.config.experiment.judge
    if settings is None:
        return
    try:
        api_key(settings)
    except KeyMissing as error:
        _stop([str(error)])
    print(f"judge: {settings.sends}", file=sys.stderr)


def hold(plan: Plan, cluster: bool = False) -> None:
    """Hold the experiment's results until this process ends, unless ``unlearn run`` does, and end what killed runs have
    left at work on them, on a ``cluster`` in Slurm's queue too; exit with 2 where another run is alive."""
    if os.environ.get(RUN):
        return
    try:
        held = runs.begin(plan.paths.root, lambda: os.kill(os.getpid(), signal.SIGTERM), cluster)
    except Held as error:
        _stop([str(error)])
    atexit.register(held.release)


def require_slurm(here: Site) -> None:
    """Exit with 2 where Slurm would refuse each attempt of each job, for what the site says."""
    if refused := slurm_site.refusal(here):
        _stop([refused])


def _stop(problems: Iterable[str]) -> NoReturn:
    print(printable("\n".join(problems)), file=sys.stderr)
    sys.exit(2)


def require_gpus(plan: Plan) -> None:
    """Exit with 2 where jobs that are about to run on this machine need a GPU and it shows none at all."""
    if plan.config.experiment.runtime.device == "cuda" and not visible_gpus():
        why = "nvidia-smi lists none, or is not installed"
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            why = f"CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}"
        _stop([f"runtime.device: 'cuda', but this machine shows no GPU ({why})"])


NO_IMAGE = "none"


class Rules:
    """Functions for the rules. ``pattern`` is a job's folder below the experiment's, with wildcards in braces.

    Args:
        plan: The experiment's jobs.
        here: The site.
        image: What steps run in.
        in_image: Whether they do.
        cluster: Whether jobs are Slurm's.
    """

    def __init__(self, plan: Plan, here: Site, image: Path, in_image: bool = False, cluster: bool = False):
        self.plan, self.site, self.cluster = plan, here, cluster
        # Snakemake checks the name of an image that nothing runs in, too: no white space of the clone's path is in it.
        self.container, self.in_image = str(image) if in_image else NO_IMAGE, in_image
        self._several = plan.config.layout.ranks > 1
        self._needs = cache(lambda name: resources.needs(plan, here, plan.jobs[name]))
        self._canonical = cache(lambda name: canonical(plan.jobs[name].spec))

    @property
    def no_container(self) -> str | None:
        """For a step that runs where Snakemake does. Where nothing runs in an image the name means nothing, but
        ``snakemake --lint`` wants every rule to have one."""
        return None if self.in_image else self.container

    @property
    def container_of_ranks(self) -> str | None:
        """The container of a step that loads a model: of several ranks, the launcher gives each one its own."""
        return self.no_container if self._several else self.container

    @property
    def image_of_ranks(self) -> str | None:
        """The image that a step names itself; as a parameter of its rule, another one makes it run again."""
        return self.container if self._several and self.in_image else None

    def launch(self, wildcards: Any, resources: Any) -> str:
        """Options of the launcher for a step of several ranks. They decide no result, and Snakemake does not run a
        step again for another value of them, because they depend on ``resources``."""
        if not self._several:
            return ""
        nodes = ["--nodes", str(resources.nodes)] if self.cluster else []
        return shlex.join([*nodes, *(["--image", self.container] if self.in_image else [])])

    def resources(self, pattern: str) -> dict[str, Callable[..., int | str | None]]:
        """What the job asks Slurm for; the local profile reads none of it."""

        def value(key: str) -> Callable[..., int | str | None]:
            return lambda wildcards, attempt: self._requested(self._job(pattern, wildcards), attempt)[key]

        return {key: value(key) for key in resources.KEYS}

    def model(self, text: str) -> ModelId:
        """The model that a wildcard names."""
        return ModelId.parse(text, attacks(self.plan.config), self.plan.config.requests)

    def files(self, pattern: str, purpose: str) -> Callable[[Any], list[str]]:
        """The files that the job reads for a purpose, which is one of ``Job.reads``."""
        return lambda wildcards: [str(path) for path in self._job(pattern, wildcards).reads.get(purpose, ())]

    def source(self, pattern: str) -> Callable[[Any], str]:
        """A digest of the source files that the job runs, and one of the files that a user gives it, if there are
        some: a change in one is a reason to run the job again."""

        def digests(wildcards: Any) -> str:
            job = self._job(pattern, wildcards)
            given = fingerprint(path for path in job.inputs if not path.is_relative_to(self.plan.paths.root))
            return f"{source_digest(job.spec)} {given}".rstrip()

        return digests

    def spec(self, pattern: str) -> Callable[[Any], str]:
        """The job's specification: a change in it is a reason to run the job again."""
        return lambda wildcards: self._canonical(self._job(pattern, wildcards).name)

    @property
    def threads(self) -> int:
        """CPU threads of all ranks of a step that loads a model."""
        return self.plan.config.layout.ranks * self.plan.config.experiment.runtime.threads

    def training_threads(self, wildcards: Any) -> int:
        """As ``threads``, of a model that is trained, for which the experiment may state threads of its own."""
        spec = self._job("models/{model}", wildcards).spec
        return spec.ranks * spec.threads

    @property
    def accelerator(self) -> int:
        """1 for a step that loads a model onto this machine's GPUs: two at a time would share one GPU's memory."""
        return int(on_gpus(self.plan.config.experiment.runtime.device))

    def _requested(self, job: Job, attempt: int) -> dict[str, int | str | None]:
        try:
            return resources.requested(self._needs(job.name), self.site, attempt)
        except ValueError:
            if self.cluster:
                raise
            return dict.fromkeys(resources.KEYS)  # this machine holds what the site's nodes would not

    def _job(self, pattern: str, wildcards: Any) -> Job:
        return self.plan.jobs[pattern.format(**dict(wildcards.items()))]


def literal(text: object) -> str:
    """A text for people in a rule's message, which Snakemake takes for a format string."""
    return str(text).replace("{", "{{").replace("}", "}}")


def one_of(names: Iterable[object]) -> str:
    """A regular expression for exactly these names; for none of them, one that never matches."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"
