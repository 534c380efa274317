# %% [markdown]
# # A finished run
#
# Opens as a notebook in Jupyter (with jupytext) and in most editors, and runs as a program too. Run an experiment
# first, `unlearn run mini` for one, and name its folder in the variable RESULTS where that is not `results/mini`.

# %%
import os

import matplotlib.pyplot as plt

from pipeline import results

run = results.load(os.environ.get("RESULTS", "results/mini"))
print(run.experiment, "forgets", run.split, "of", run.benchmark)
for model in run.models:
    print(f"{model.id:30} {model.kind:10} {len(model.metrics)} metrics")

# %% [markdown]
# ## Losses, step by step
# `steps()` is a dictionary for each optimizer step; the page "Results" of the documentation says what the keys mean.

# %%
unlearned = [model for model in run.models if model.kind == "unlearned" and model.attack is None and model.steps()]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), sharex=True)
for model in unlearned:
    steps = model.steps()
    left.plot([step["step"] for step in steps], [step["forget_loss"] for step in steps], label=model.id)
    right.plot([step["step"] for step in steps], [step["retain_loss"] for step in steps])
left.set(xlabel="step", ylabel="forget loss")
right.set(xlabel="step", ylabel="retain loss")
left.legend()
plt.show()

# %% [markdown]
# ## Two models side by side
# `metrics()` is a row for each value, as `pandas.DataFrame(run.metrics())` takes them.

# %%
first, second = run.model("target"), unlearned[0]
for key, value in first.metrics.items():
    other = second.metrics.get(key)
    if value is not None and other is not None:
        print(f"{key:40} {value:10.4g} {other:10.4g}")

# %% [markdown]
# ## What they said
# `examples()` has the texts and the log-probabilities from which the metrics were computed.

# %%
for before, after in list(zip(first.examples(), second.examples(), strict=True))[:5]:
    print(before.get("question"))
    print("  true  ", before.get("answer"))
    print("  before", before.get("generation"))
    print("  after ", after.get("generation"))
