"""What the intervals of a page are about, in a sentence."""

_NOT = "not about what the procedure would train on other cases"
OF_DIFFERENCES = (
    "The 95% intervals are about the difference between these trained models, of a cross-validation the means over its "
    f"folds, on new cases of this population, {_NOT}."
)
OF_DROPS = (
    "The intervals are about the mean drop of these models on new cases of this population that are changed so, not "
    "about another scanner."
)


def of_run(run):
    """Of the intervals of a run's page."""
    models = "the mean of these models" if len(run.finished) > 1 else "this model"
    return f"The 95% intervals of this page are about {models} on new cases of this population, {_NOT}."
