"""Parts of an update put on the base one at a time: what each carries of the skill, and what it costs."""
