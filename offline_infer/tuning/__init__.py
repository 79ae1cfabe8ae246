"""Which way to run a bundle: Dice against time on labelled cases, and the setting that was chosen, kept with its figures."""
