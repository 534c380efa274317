"""What a job does, and how much of it, in a line."""

from __future__ import annotations

from megatron_ext.specs import AlternativesSpec, QuantiseSpec, ReferenceSpec, TrainSpec, UnlearnSpec
from pipeline.specs import EvaluateSpec, FetchDatasetsSpec, FetchDataSpec, FetchSpec, JudgeSpec, ReportSpec
from pipeline.workflow.jobs import Job
from pipeline.workflow.paths import TARGET
from pipeline.workflow.plan import Plan
from pipeline.workflow.unlearning_jobs import sampled_sets, unlearning_steps


def describe(plan: Plan, job: Job) -> str:
    """What the job does and how much of it; empty where its name says it all."""
    match job.spec:
        case QuantiseSpec() as spec:
            return spec.scheme
        case TrainSpec() as spec:
            return f"{spec.steps} steps of {spec.batching.global_batch}"
        case UnlearnSpec() as spec:
            about = "" if plan.config.forget_rows_are_exact else "about "
            steps = unlearning_steps(plan.config, spec)
            saved = f", {len(spec.saved_epochs)} epochs saved" if spec.saved_epochs else ""
            return f"{spec.epochs:g} epochs, {about}{steps} steps of {spec.batching.global_batch}{saved}"
        case FetchSpec():
            return "published checkpoint"
        case FetchDataSpec():
            return "data set's files"
        case FetchDatasetsSpec() as spec:
            return ", ".join(spec.datasets)
        case JudgeSpec() as spec:
            most = spec.settings.max_examples
            return (
                f"{'all' if most is None else f'at most {most}'} answers of each of two sets, by {spec.settings.model}"
            )
        case ReportSpec():
            return f"{len(plan.jobs)} jobs' results"
        case _:
            return ""


def title(plan: Plan, job: Job) -> str | None:
    """What the job does, where the files tell more than the message of its rule can; ``None`` where they do not."""
    match job.spec:
        case EvaluateSpec() as spec:
            return f"evaluate: {spec.model_id}" + (f", {spec.benchmark}" if spec.benchmark in plan.utility else "")
        case ReferenceSpec() as spec:
            models = {plan.paths.checkpoint(model): str(model) for model in (TARGET, *plan.evaluated)}
            answers = {plan.paths.alternatives(name): forget for name, (forget, _) in sampled_sets(plan.config).items()}
            data = f"other answers to {answers[spec.data]}" if spec.data in answers else spec.data.stem
            return f"reference: log-probabilities of {data} under {models[spec.checkpoint]}"
        case AlternativesSpec() as spec:
            return f"alternatives: other answers to {spec.data.stem}, sampled by target"
        case _:
            return None
