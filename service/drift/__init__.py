"""How far what a model sees now is from what it was measured on."""
