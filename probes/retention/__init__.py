"""Whether tuning removed an ability or only its default prompt: one question, many forms of asking it."""
