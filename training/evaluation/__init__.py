"""What a model is worth: cross-validation, rivals, figures, report and card.

Flows and traces differ in what a fold trains and says (`flow_folds`, `flow_outcomes`, `trace_folds`, `variants`,
`outcomes`) and in what their records state; everything behind `Measured`, what was said of things that were held out,
is the same for both.
"""
