"""What a model is worth: cross-validation, rivals, figures, report and card."""
